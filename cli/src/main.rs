//! `nacre`: the owner's tool.

fn main() {}
