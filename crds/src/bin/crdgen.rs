//! Writes `crds/generated/*.yaml` and the chart's copies from the types.

use std::{error::Error, fs, path::Path};

use lifeboat_crds::generate;

fn main() -> Result<(), Box<dyn Error>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in generate::FOLDERS {
        let folder = top.join(folder);
        // What is no longer generated must go, or it would be installed for ever.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
    }
    for file in generate::files()? {
        fs::write(top.join(&file.path), file.content)?;
        println!("wrote {}", file.path);
    }
    Ok(())
}
