//! Stand-in.
/// Change.
#[derive(Debug)]
pub enum Change {}
/// Ref.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ObjectRef {
    /// ns
    pub namespace: String,
    /// name
    pub name: String,
}
