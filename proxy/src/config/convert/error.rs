//! What is wrong with a message, and in which field.

/// A message that this sidecar cannot use. It is refused whole (NACK), and the last good one stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// Path of the field within the resource, `http_rules[2].filters[0].redirect.port`.
    pub field: String,
    /// What is wrong with it, for a person.
    pub problem: String,
}

impl ConvertError {
    /// Of a field of the message at hand.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Says where the message at hand stands in the one around it.
pub(crate) trait Within<T> {
    /// In a field.
    fn within(self, field: &str) -> Result<T, ConvertError>;
    /// In an element of a repeated field.
    fn within_item(self, field: &str, index: usize) -> Result<T, ConvertError>;
}

impl<T> Within<T> for Result<T, ConvertError> {
    fn within(self, field: &str) -> Self {
        self.map_err(|inner| {
            let dot = if inner.field.is_empty() || inner.field.starts_with('[') { "" } else { "." };
            ConvertError { field: format!("{field}{dot}{}", inner.field), ..inner }
        })
    }

    fn within_item(self, field: &str, index: usize) -> Self {
        self.within(&format!("{field}[{index}]"))
    }
}

/// Converts every element, saying which one failed.
pub(crate) fn each<M, T>(
    field: &str,
    messages: &[M],
    mut convert: impl FnMut(&M) -> Result<T, ConvertError>,
) -> Result<Vec<T>, ConvertError> {
    messages.iter().enumerate().map(|(index, message)| convert(message).within_item(field, index)).collect()
}
