//! Images and registries made to do harm.
