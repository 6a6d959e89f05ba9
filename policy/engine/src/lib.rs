//! Judges agent requests by a Rego policy, and explains denials.

#![forbid(unsafe_code)]
