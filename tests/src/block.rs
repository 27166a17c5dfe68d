//! A block of loopback addresses for one world alone.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context;

/// While a world lives it listens here on the first address of its block, so that no other takes it.
const CLAIM_PORT: u16 = 15099;

/// 254 addresses, 127.x.y.1 to 127.x.y.254.
#[derive(Debug)]
pub struct Block {
    prefix: [u8; 3],
    _claim: TcpListener,
}

impl Block {
    /// Takes a block that no other world of any process on this machine has.
    ///
    /// # Errors
    /// When none is free, which takes tens of thousands of worlds.
    pub fn claim() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        const BLOCKS: u32 = 190 * 256;
        // Processes begin far apart; a collision only costs one more try.
        let seed = std::process::id().wrapping_mul(2_654_435_761) >> 8;
        for _ in 0..1000 {
            let index = (seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % BLOCKS;
            let prefix = [127, 64 + (index / 256) as u8, (index % 256) as u8];
            if let Ok(block) = Self::at(prefix) {
                return Ok(block);
            }
        }
        anyhow::bail!("no free block of loopback addresses in 1000 tries")
    }

    /// Takes the block that begins with `prefix`.
    ///
    /// # Errors
    /// When another world has it.
    pub fn at(prefix: [u8; 3]) -> anyhow::Result<Self> {
        let [a, b, c] = prefix;
        let first = Ipv4Addr::new(a, b, c, 1);
        let claim = TcpListener::bind((first, CLAIM_PORT))
            .with_context(|| format!("{first}:{CLAIM_PORT} is taken: is another mesh running there?"))?;
        Ok(Self { prefix, _claim: claim })
    }

    /// The block's address that ends in `host`.
    #[must_use]
    pub fn address(&self, host: u8) -> IpAddr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, host).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_worlds_never_share_a_block() {
        let (one, other) = (Block::claim().unwrap(), Block::claim().unwrap());
        assert_ne!(one.address(1), other.address(1));
        assert!(Block::at(one.prefix).is_err());
    }

    #[test]
    fn a_block_is_free_again_when_its_world_is_gone() {
        let prefix = Block::claim().unwrap().prefix;
        assert!(Block::at(prefix).is_ok());
    }
}
