//! How often one client may ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clients that are remembered at once. Who is forgotten begins with a full bucket.
const CLIENTS: usize = 16_384;

/// Buckets of tokens: each client's fills at `rate` a second up to `burst`.
pub(crate) struct Limiter {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<Client, Bucket>>,
}

/// An IPv4 address, or the upper half of an IPv6 address, which one customer has for himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    V4([u8; 4]),
    V6([u8; 8]),
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(crate) fn new(rate: u32, burst: u32) -> Limiter {
        Limiter { rate: rate.into(), burst: burst.into(), buckets: Mutex::default() }
    }

    /// Takes `cost` tokens of a client. If there are too few: how long until there are enough.
    /// Clients on loopback are not counted: behind a proxy there, all would be one.
    pub(crate) fn take(&self, client: IpAddr, cost: u32, now: Instant) -> Result<(), Duration> {
        let Some(client) = Client::of(client) else { return Ok(()) };
        let cost = f64::from(cost);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS && !buckets.contains_key(&client) {
            self.forget(&mut buckets, now);
        }
        let bucket = buckets.entry(client).or_insert(Bucket { tokens: self.burst, at: now });
        bucket.tokens = self.filled(bucket, now);
        bucket.at = now;
        if bucket.tokens < cost {
            return Err(Duration::from_secs_f64((cost - bucket.tokens) / self.rate));
        }
        bucket.tokens -= cost;
        Ok(())
    }

    /// Takes up to `cost` tokens more, for a request that turned out to be a bad one.
    pub(crate) fn charge(&self, client: IpAddr, cost: u32, now: Instant) {
        let Some(client) = Client::of(client) else { return };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&client) {
            bucket.tokens = (self.filled(bucket, now) - f64::from(cost)).max(0.0);
            bucket.at = now;
        }
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + passed * self.rate).min(self.burst)
    }

    /// Full buckets say nothing. If all of many clients are busy, the fuller half goes.
    fn forget(&self, buckets: &mut HashMap<Client, Bucket>, now: Instant) {
        for share in [1.0, 0.5, 0.0] {
            buckets.retain(|_, bucket| self.filled(bucket, now) < self.burst * share);
            if buckets.len() < CLIENTS {
                return;
            }
        }
    }
}

impl Client {
    fn of(address: IpAddr) -> Option<Client> {
        let address = address.to_canonical();
        match address {
            _ if address.is_loopback() => None,
            IpAddr::V4(address) => Some(Client::V4(address.octets())),
            IpAddr::V6(address) => address.octets().first_chunk().copied().map(Client::V6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_measure() {
        let limiter = Limiter::new(10, 20);
        let now = Instant::now();
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        for _ in 0..20 {
            limiter.take(one, 1, now).unwrap();
        }
        assert_eq!(limiter.take(one, 1, now), Err(Duration::from_millis(100)));
        limiter.take(two, 20, now).unwrap();
        limiter.take(one, 10, now + Duration::from_secs(1)).unwrap();
        limiter.take(one, 1, now + Duration::from_secs(1)).unwrap_err();
        limiter.take(one, 20, now + Duration::from_secs(100)).unwrap();
        limiter.take(one, 1, now + Duration::from_secs(100)).unwrap_err();
        limiter.take(two, 1, now + Duration::from_secs(1)).unwrap();
        limiter.charge(two, 1000, now + Duration::from_secs(1));
        limiter.take(two, 1, now + Duration::from_secs(1)).unwrap_err();
        limiter.take(two, 1, now + Duration::from_secs(2)).unwrap();
    }

    #[test]
    fn half_an_ipv6_address_is_one_client_and_loopback_none() {
        let limiter = Limiter::new(1, 1);
        let now = Instant::now();
        limiter.take("2001:db8::1".parse().unwrap(), 1, now).unwrap();
        limiter.take("2001:db8::ffff:2".parse().unwrap(), 1, now).unwrap_err();
        limiter.take("2001:db8:0:1::1".parse().unwrap(), 1, now).unwrap();
        limiter.take("::ffff:192.0.2.1".parse().unwrap(), 1, now).unwrap();
        limiter.take("192.0.2.1".parse().unwrap(), 1, now).unwrap_err();
        for _ in 0..10 {
            limiter.take("127.0.0.1".parse().unwrap(), 1, now).unwrap();
            limiter.take("::1".parse().unwrap(), 1, now).unwrap();
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let limiter = Limiter::new(1, 2);
        let now = Instant::now();
        for number in 0..50_000_u32 {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            limiter.take(address, 1, now).unwrap();
        }
        assert!(limiter.buckets.lock().unwrap().len() <= CLIENTS);
    }
}
