//! The layering rule of `src/lib.rs`, checked.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The table in the head of `lib.rs`: which layer each module stands in.
fn layers(map: &str) -> HashMap<String, usize> {
    let mut layers = HashMap::new();
    for line in map.lines() {
        let mut cells = line.split('|').skip(1);
        let Some(layer) = cells.next().and_then(|cell| cell.trim().parse().ok()) else {
            continue;
        };
        let modules = cells.next().unwrap();
        for name in modules.split("[`").skip(1) {
            let (name, _) = name.split_once('`').unwrap();
            layers.insert(name.to_owned(), layer);
        }
    }
    layers
}

#[test]
fn modules_import_from_lower_layers_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers(&fs::read_to_string(source.join("lib.rs")).unwrap());
    let mut seen = 0;
    for path in files(&source) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "main" || name == "lib" {
            continue;
        }
        // A folder holds the parts of the module of its name.
        if path.is_dir() {
            for part in files(&path) {
                check_imports(&part, &name, &layers);
            }
            continue;
        }
        seen += 1;
        check_imports(&path, &name, &layers);
    }
    assert_eq!(seen, layers.len(), "lib.rs names modules that do not exist");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Checks that the file at `path`, of the module `name`, imports from lower layers only.
fn check_imports(path: &Path, name: &str, layers: &HashMap<String, usize>) {
    let layer = *layers
        .get(name)
        .unwrap_or_else(|| panic!("{name} has no layer in lib.rs"));
    let text = fs::read_to_string(path).unwrap();
    // Tests may look wherever they like.
    let code = text.split("#[cfg(test)]").next().unwrap();
    for import in code.split("crate::").skip(1) {
        let end = import
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap();
        let imported = &import[..end];
        let below = layers.get(imported).is_some_and(|it| *it < layer);
        assert!(below, "{name} (layer {layer}) imports {imported}");
    }
}
