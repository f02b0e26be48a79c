//! The layering rule of ARCHITECTURE.md, checked.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// The table in ARCHITECTURE.md: which layer each folder or file of `src` stands in.
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
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let layers = layers(&fs::read_to_string(map).unwrap());
    let mut seen = HashSet::new();
    let mut folders = vec![source.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    for path in files {
        // What a folder holds belongs to the module of its name.
        let below = path.strip_prefix(&source).unwrap();
        let module = below.components().next().unwrap().as_os_str();
        let name = Path::new(module).file_stem().unwrap().to_str().unwrap();
        if name == "main" || name == "lib" {
            continue;
        }
        let layer = *layers
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no layer in ARCHITECTURE.md"));
        seen.insert(name.to_owned());
        let text = fs::read_to_string(&path).unwrap();
        // Tests may import from any layer.
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code = code.split("#![cfg(test)]").next().unwrap();
        for import in code.split("crate::").skip(1) {
            let end = import
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap();
            let imported = &import[..end];
            if imported == name {
                continue;
            }
            let below = layers.get(imported).is_some_and(|it| *it < layer);
            assert!(below, "{name} (layer {layer}) imports {imported}");
        }
    }
    assert_eq!(
        seen.len(),
        layers.len(),
        "ARCHITECTURE.md names modules that do not exist"
    );
}
