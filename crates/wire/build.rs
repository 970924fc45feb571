//! Compiles the protocol files without any tool of the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let files = ["identity", "config", "telemetry", "operator"].map(|name| format!("{root}/rondel/v1/{name}.proto"));
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
