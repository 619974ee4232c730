//! Who gets what: bound tokens, one flight, refusals, and annotations that change under running pods.
#![allow(clippy::unwrap_used)]
