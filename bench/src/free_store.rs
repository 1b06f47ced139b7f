//! The store without cost as a process of its own.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use lifeboat_tests::rig::StoreAddress;
use tokio::net::TcpListener;

use crate::store;

/// A running one, for one site: gone with it, and with what it holds.
pub struct FreeStore {
    child: Child,
    pub address: StoreAddress,
}

impl FreeStore {
    pub fn start() -> Self {
        let own = std::env::current_exe().unwrap();
        let mut child = Command::new(own).arg("store").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let endpoint = format!("http://{}/{}", line.trim(), store::ACCOUNT);
        // Any key is believed; it only has to be base64.
        Self { child, address: StoreAddress { endpoint, account_key: "a2V5a2V5a2V5a2V5".to_owned() } }
    }

    /// Requests answered so far: (number, bytes of their bodies).
    pub fn requests(&self) -> (u64, u64) {
        let authority = self.address.endpoint.split('/').nth(2).unwrap();
        let text = crate::processes::http_get(authority, store::REQUESTS_PATH);
        let (number, bytes) = text.trim().split_once(' ').unwrap();
        (number.parse().unwrap(), bytes.parse().unwrap())
    }
}

impl Drop for FreeStore {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Serves until killed; ends, too, when the bench does.
pub fn serve() {
    #[allow(unsafe_code, reason = "no library asks the kernel for it; it takes no memory of ours")]
    // SAFETY: only sets which signal this process gets when its parent ends.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        store::serve(listener).await.unwrap();
    });
}
