//! Code generated from `proto/`.

#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]

pub(crate) mod containerd {
    pub(crate) mod types {
        tonic::include_proto!("containerd.types");
    }
    pub(crate) mod services {
        pub(crate) mod content {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
        pub(crate) mod snapshots {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}
