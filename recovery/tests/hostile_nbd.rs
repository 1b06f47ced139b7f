//! The NBD server against clients that send anything: no panic, no memory without bound, and the disk of the others
//! stays as it is. Seeded: a failure prints its seed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat_recovery::{
    device::Device,
    nbd::{
        handshake::{Negotiated, negotiate},
        protocol::*,
        session::transmit,
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SIZE: u64 = 1 << 20;
const CASES: u64 = 2000;

/// Reads as zeros; refuses what lies outside, as the session must never ask for it.
#[derive(Debug)]
struct Zeros;

impl Zeros {
    fn check(offset: u64, length: u64) {
        assert!(offset.checked_add(length).is_some_and(|end| end <= SIZE), "{length} bytes at {offset}");
    }
}

#[async_trait]
impl Device for Zeros {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        Self::check(offset, length.into());
        Ok(vec![0; length as usize].into())
    }

    async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
        Self::check(offset, data.len() as u64);
        Ok(())
    }

    async fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        Self::check(offset, length);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn mutate(seed: u64, example: &[u8]) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = example.to_vec();
    for _ in 0..=next(&mut state) % 4 {
        let at = (next(&mut state) % bytes.len().max(1) as u64) as usize;
        match next(&mut state) % 6 {
            _ if bytes.is_empty() => bytes.push(next(&mut state) as u8),
            0 => bytes[at] ^= 1 << (next(&mut state) % 8),
            1 => bytes[at] = 0xff,
            2 => bytes.truncate(at),
            3 => bytes[at..].iter_mut().zip(u64::MAX.to_be_bytes()).for_each(|(byte, new)| *byte = new),
            4 => bytes.extend_from_within(at..),
            _ => bytes.insert(at, next(&mut state) as u8),
        }
    }
    bytes
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&OPTION_MAGIC[..], &code.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn request(command: u16, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend([0, 1]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test(start_paused = true)]
async fn negotiations() {
    let name = [&3_u32.to_be_bytes()[..], b"sda", &[0, 1, 0, 3]].concat();
    let whole = [
        3_u32.to_be_bytes().to_vec(),
        option(OPT_LIST, b""),
        option(OPT_INFO, &name),
        option(8, b"structured"),
        option(OPT_GO, &name),
    ]
    .concat();
    for seed in 0..CASES {
        let sent = mutate(seed, &whole);
        let mut answers = Vec::new();
        let mut reader = sent.as_slice();
        let talk = negotiate(&mut reader, &mut answers, "sda", SIZE);
        match tokio::time::timeout(Duration::from_secs(5), talk)
            .await
            .unwrap_or_else(|_| panic!("seed {seed} hangs"))
        {
            Ok(Negotiated::Transmission | Negotiated::Ended) => {}
            Err(error) => assert!(!error.to_string().is_empty(), "seed {seed}"),
        }
        assert!(answers.len() < 64 << 10, "seed {seed}: {} bytes of answers", answers.len());
    }
}

#[tokio::test(start_paused = true)]
async fn requests() {
    let whole = [
        request(CMD_READ, 0, 4096, b""),
        request(CMD_WRITE, 4096, 512, &[5; 512]),
        request(CMD_WRITE_ZEROES, 8192, 4096, b""),
        request(CMD_FLUSH, 0, 0, b""),
        request(CMD_TRIM, 0, 4096, b""),
        request(CMD_READ, SIZE - 1, 1, b""),
        request(CMD_DISC, 0, 0, b""),
    ]
    .concat();
    for seed in 0..CASES {
        let sent = mutate(seed, &whole);
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(server);
        let session = tokio::spawn(transmit(reader, writer, Arc::new(Zeros)));
        let (mut answers, mut sending) = tokio::io::split(&mut client);
        let talk = async {
            let send = async {
                let _ = sending.write_all(&sent).await;
                let _ = sending.shutdown().await;
            };
            let take = async {
                let mut taken = 0;
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = answers.read(&mut buffer).await {
                    taken += read;
                }
                taken
            };
            tokio::join!(send, take).1
        };
        let taken = tokio::time::timeout(Duration::from_secs(5), talk).await;
        let taken = taken.unwrap_or_else(|_| panic!("seed {seed} hangs"));
        // Every request may ask for the whole disk once more.
        assert!(taken < 40 << 20, "seed {seed}: {taken} bytes of answers");
        let ended = session.await;
        assert!(ended.is_ok(), "seed {seed} panics");
    }
}
