//! Writes `crds/generated/*.yaml` and the chart's copies from the types.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    fs::create_dir_all(&directory)?;
    for file in lifeboat_crds::generate::files()? {
        let path = directory.join(&file.name);
        fs::write(&path, file.yaml)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
