//! The network between the programs and the blob store, which a test can slow down and cut.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Read at once: small enough that a limit is even.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// Connections break, new ones too.
    Refused,
    /// Connections stand and nothing arrives; when it opens again, what was sent arrives late.
    Silent,
}

/// A forwarder on loopback. Its threads end when it is dropped and the connections break.
pub struct Link {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    mode: Mutex<Mode>,
    streams: Mutex<Vec<TcpStream>>,
    /// Bytes a second towards the store, over all connections; 0: no limit.
    limit: AtomicU64,
    /// Bytes that went towards the store.
    sent: AtomicU64,
    turn: Mutex<()>,
}

impl Link {
    pub fn new(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to,
            mode: Mutex::new(Mode::Open),
            streams: Mutex::default(),
            limit: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            turn: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if Arc::strong_count(&accepting) == 1 {
                    break;
                }
                let connection = Arc::clone(&accepting);
                thread::spawn(move || _ = connection.forward(stream));
            }
        });
        Ok(Self { address, shared })
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
        if mode == Mode::Refused {
            self.shared.break_all();
        }
    }

    /// Bytes a second towards the store; 0: no limit.
    pub fn limit(&self, bytes_per_second: u64) {
        self.shared.limit.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes that went towards the store so far, headers of HTTP among them.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.break_all();
        // Wakes the listener, which sees that it is alone.
        _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap()
    }

    fn break_all(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn forward(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        self.wait_while_silent();
        if self.mode() == Mode::Refused {
            return Ok(());
        }
        let server = TcpStream::connect(self.to)?;
        self.streams.lock().unwrap().extend([client.try_clone()?, server.try_clone()?]);
        let (back, from, to) = (Arc::clone(self), server.try_clone()?, client.try_clone()?);
        thread::spawn(move || back.copy(from, to, false));
        self.copy(client, server, true);
        Ok(())
    }

    /// However one side ends, the other one hears of it: `streams` keeps both sockets open.
    fn copy(&self, from: TcpStream, to: TcpStream, limited: bool) {
        if self.pump(&from, &to, limited).is_err() {
            _ = from.shutdown(Shutdown::Both);
            _ = to.shutdown(Shutdown::Both);
        }
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, limited: bool) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return to.shutdown(Shutdown::Write);
            }
            self.wait_while_silent();
            if limited {
                self.take_turn(count as u64);
                self.sent.fetch_add(count as u64, Ordering::Relaxed);
            }
            to.write_all(&buffer[..count])?;
        }
    }

    /// One after the other, so that the limit holds for all together.
    fn take_turn(&self, bytes: u64) {
        if let Some(micros) = (bytes * 1_000_000).checked_div(self.limit.load(Ordering::Relaxed)) {
            let _turn = self.turn.lock().unwrap();
            thread::sleep(Duration::from_micros(micros));
        }
    }

    fn wait_while_silent(&self) {
        while self.mode() == Mode::Silent {
            thread::sleep(Duration::from_millis(20));
        }
    }
}
