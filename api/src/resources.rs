//! Heddle's custom resources, group `heddle.dev`, version `v1alpha1`.
