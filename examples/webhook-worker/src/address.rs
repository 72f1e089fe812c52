//! Which addresses may be called: those of the public internet, and what a setting allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// Of the IANA special-purpose registry, what is not reachable from everywhere; 169.254.169.254 is where clouds keep
/// credentials.
const NOT_PUBLIC_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];

/// Only 2000::/3 is given out at all; of that, these are not public or carry another address in them.
const NOT_PUBLIC_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 0, 23),
    v6(0x2001, 0xdb8, 0, 32),
    v6(0x2002, 0, 0, 16),
    v6(0x3fff, 0, 0, 20),
];
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

/// Whether the address is one of the public internet. One that stands for an IPv4 address counts as that.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => GLOBAL_V6.contains(&address) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&address)),
    }
}

/// What may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Everything.
    Everything,
    /// Public addresses, and those in these networks.
    Public(Vec<IpNet>),
}

impl Guard {
    /// Whether a connection to this address may be made.
    pub fn permits(&self, address: IpAddr) -> bool {
        match self {
            Self::Everything => true,
            Self::Public(also) => is_public(address) || also.iter().any(|net| net.contains(&address.to_canonical())),
        }
    }
}

impl FromStr for Guard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" => Ok(Self::Everything),
            "false" | "" => Ok(Self::Public(Vec::new())),
            nets => {
                let parse = |net: &str| {
                    let net = net.trim();
                    net.parse::<IpNet>()
                        .or_else(|_| net.parse::<IpAddr>().map(IpNet::from))
                        .map_err(|_| format!("\"{net}\" is neither true, false, nor a network such as 10.0.0.0/8"))
                };
                nets.split(',').map(parse).collect::<Result<_, _>>().map(Self::Public)
            }
        }
    }
}

/// An address that may not be called. Found in the chain of an error of the HTTP client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} may not be called: it is not a public address")]
pub struct Refused(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        let private = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fd00:ec2::254",
        ];
        for private in private {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn a_guard_allows_what_it_names() {
        let permits = |guard: &str, address: &str| guard.parse::<Guard>().unwrap().permits(address.parse().unwrap());
        assert!(permits("true", "127.0.0.1"));
        assert!(!permits("false", "127.0.0.1") && permits("false", "9.9.9.9") && !permits("", "::1"));
        let two = "127.0.0.1, 10.0.0.0/8";
        assert!(permits(two, "127.0.0.1") && permits(two, "::ffff:10.1.2.3") && permits(two, "9.9.9.9"));
        assert!(!permits(two, "127.0.0.2") && !permits(two, "192.168.0.1"));
        assert!("10.0.0.0/8,x".parse::<Guard>().is_err());
    }
}
