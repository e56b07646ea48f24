//! Holds a DBSP engine's lock, as the engine does: a POSIX record lock on the file, until stdin ends. Such locks belong to a process, so a test
//! needs another one to hold it.

use std::{
    fs::File,
    io::{Error, Read as _, Write as _, stdin, stdout},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};

fn main() -> Result<(), Error> {
    let path = std::env::args_os().nth(1).ok_or_else(|| Error::other("usage: engine_lock FILE"))?;
    let file = File::create(path)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&whole))?;
    println!("held");
    stdout().flush()?;
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
