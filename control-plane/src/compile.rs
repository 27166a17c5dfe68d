//! Stand-in.
use heddle_api::{identity::PodName, v1};
/// o
#[derive(Debug)]
pub struct Options {
    /// t
    pub trust_domain: String,
    /// c
    pub cluster_domain: String,
}
/// m
#[derive(Debug)]
pub struct Mesh;
/// d
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dep {
    /// p
    Pod(PodName),
    /// t
    Trust,
}
/// c
#[derive(Debug)]
pub struct Compiled<T> {
    /// v
    pub value: Option<T>,
    /// d
    pub deps: Vec<Dep>,
}
/// f
#[derive(Debug)]
pub struct PodFacts {
    /// s
    pub service_account: String,
    /// m
    pub meshed: bool,
}
impl Mesh {
    /// n
    pub fn new(_options: Options) -> Self {
        Self
    }
    /// a
    pub fn apply(&mut self, _changes: Vec<crate::object::Change>) -> std::collections::HashSet<Dep> {
        std::collections::HashSet::default()
    }
    /// d
    pub fn destination(&self, _ns: &str, _name: &str) -> Compiled<v1::Destination> {
        Compiled { value: None, deps: vec![] }
    }
    /// e
    pub fn endpoints(&self, _key: &str) -> Compiled<v1::Endpoints> {
        Compiled { value: None, deps: vec![] }
    }
    /// i
    pub fn inbound(&self, _pod: &PodName) -> Compiled<v1::Inbound> {
        Compiled { value: None, deps: vec![] }
    }
    /// p
    pub fn pod(&self, _pod: &PodName) -> Option<PodFacts> {
        None
    }
    /// d
    pub fn diagnostics(&self) -> Vec<crate::diagnostics::Diagnostic> {
        vec![]
    }
}
