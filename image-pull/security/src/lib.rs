//! Decides whether an image may run.
