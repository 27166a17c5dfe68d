//! Heddle's control plane: object sources, compiler, discovery streams, certificate authority.

pub mod compile;
pub mod diagnostics;
pub mod object;
pub mod source;
