//! Stand-in.
/// D
#[derive(Clone, Debug, serde::Serialize)]
pub struct Diagnostic {
    /// f
    pub file: Option<std::path::PathBuf>,
    /// l
    pub line: Option<u32>,
    /// o
    pub object: Option<crate::object::ObjectRef>,
    /// f
    pub field: Option<String>,
    /// m
    pub message: String,
}
