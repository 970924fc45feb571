//! Compiles the protocol files without any tool of the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let files = ["rondel/v1/identity", "rondel/v1/config", "rondel/v1/telemetry", "rondel/v1/operator", "spiffe/workload"]
        .map(|name| format!("{root}/{name}.proto"));
    let descriptors = protox::compile(files, [root])?;
    // It holds a private key: `workload.rs` says how it is shown.
    tonic_prost_build::configure().skip_debug([".X509SVID"]).compile_fds(descriptors)?;
    Ok(())
}
