//! Heddle's control plane: reads objects, compiles them to mesh config, and tells each sidecar what concerns it.
//!
//! In the order in which a change travels: [`source`] reads objects, [`compile`] derives config from them, [`hub`] keeps
//! what is subscribed to and who subscribes, [`discovery`] speaks to one sidecar. Beside that stand who may speak:
//! [`ca`], [`token`], [`identity`] and [`tls`]; what a cluster alone needs: [`cluster`]; and the operator's side: [`admin`],
//! [`ready`] and [`cli`]. [`inject`] stands by itself: it gives pods their sidecars. [`heddle`] is the program for people, and
//! [`checkup`] its `heddle check`.

pub mod admin;
pub mod ca;
pub mod checkup;
pub mod cli;
pub mod cluster;
pub mod compile;
pub mod diagnostics;
pub mod discovery;
mod few;
pub mod heddle;
pub mod hub;
pub mod identity;
pub mod inject;
pub mod metrics;
pub mod object;
pub mod ready;
pub mod run;
pub mod source;
pub mod tls;
pub mod token;
mod yaml;
