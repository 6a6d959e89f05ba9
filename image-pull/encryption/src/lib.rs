//! Encrypted layers of container images.
