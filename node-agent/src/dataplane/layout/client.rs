//! The key under which a client with session affinity is remembered.

use std::net::{IpAddr, Ipv6Addr};

use super::rules::SEED;

/// A client's part of the key in `clientsN`, as the rules write it: an IPv4 address itself, an IPv6 address's hash.
pub fn client_key(client: IpAddr) -> [u8; 4] {
    match client {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => hash(address).to_ne_bytes(),
    }
}

/// What `jhash ip6 saddr mod 4294967295 seed SEED` gives: the kernel scales the hash to the modulus instead of dividing.
fn hash(address: Ipv6Addr) -> u32 {
    let scaled = (u64::from(jenkins(address.octets(), SEED)) * u64::from(u32::MAX)) >> 32;
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

/// The kernel's `jhash` of 16 bytes (`include/linux/jhash.h`): 12 of them in one round, the last four in the final one.
fn jenkins(key: [u8; 16], seed: u32) -> u32 {
    let word = |at: usize| [key[at], key[at + 1], key[at + 2], key[at + 3]];
    // What fills a whole round is read as the machine stores it, the rest byte by byte from the lowest.
    let whole = |at| u32::from_ne_bytes(word(at));
    let start = 0xdead_beef_u32.wrapping_add(16).wrapping_add(seed);
    let [mut a, mut b, mut c] = [whole(0), whole(4), whole(8)].map(|word| start.wrapping_add(word));

    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);

    a = a.wrapping_add(u32::from_le_bytes(word(12)));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read from `clients6` of Linux 6.18 after these two had connected.
    #[test]
    fn the_hash_is_that_of_the_kernel() {
        for (address, hash) in [("fd00:30:1::2", 495_394_849_u32), ("fd00:128:1::10", 2_899_234_407)] {
            let client: Ipv6Addr = address.parse().unwrap();
            assert_eq!(client_key(client.into()), hash.to_ne_bytes(), "{address}");
        }
        assert_eq!(client_key(IpAddr::from([192, 0, 2, 1])), [192, 0, 2, 1]);
    }
}
