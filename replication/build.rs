//! Compiles `proto/` without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["vault", "data", "management", "control"].map(|name| format!("lifeboat/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".lifeboat.v1.Chunk.data")
        .bytes(".lifeboat.v1.Sums.sums")
        .codec_path("crate::wire::LimitedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
