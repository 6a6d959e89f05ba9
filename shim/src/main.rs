//! The program that containerd starts for a pod: see the library of the same name.

fn main() -> std::process::ExitCode {
    nacre_shim::main()
}
