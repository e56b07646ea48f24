//! A new migration must be compiled in; cargo would not notice it by itself.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
