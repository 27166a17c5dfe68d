//! The compiler's tests: manifests in, mesh config out (`golden`), what a change touches (`touched`), what is
//! said of objects (`problems`), and whose an EndpointSlice says that its endpoints are (`targets`).

mod golden;
mod problems;
mod targets;
mod touched;

use super::{Mesh, Options};
use crate::{
    object::{Change, Object},
    source::objects,
};

/// A mesh made from manifests.
pub(super) fn mesh(manifests: &str) -> Mesh {
    let mut mesh = Mesh::new(Options::default());
    mesh.apply(upserts(manifests));
    mesh
}

pub(super) fn upserts(manifests: &str) -> Vec<Change> {
    objects(manifests).into_iter().map(Change::Upsert).collect()
}

pub(super) fn removals(manifests: &str) -> Vec<Change> {
    objects(manifests).iter().map(Object::reference).map(Change::Remove).collect()
}

/// A shop: `web` calls `reviews`, which has two versions.
const SHOP: &str = include_str!("../golden/shop.yaml");
