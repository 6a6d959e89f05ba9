//! The node cache of image blobs.
