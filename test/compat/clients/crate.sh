# Fetches crate $1 from the registry into a new project.
set -e
mkdir -p "crate-$1/src"
cd "crate-$1"
: >src/lib.rs
cat >Cargo.toml <<END
[package]
name = "app"
version = "0.1.0"
edition = "2021"
[dependencies]
$1 = { version = "1", registry = "compat" }
END
CARGO_REGISTRIES_COMPAT_INDEX=sparse+${INDEX:-https://crates.compat.example}/index/ cargo fetch
