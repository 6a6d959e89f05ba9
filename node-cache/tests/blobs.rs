//! What guests put and get: from another guest, from containerd, while it comes, and what is kept.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use nacre_protocol::blob_cache::{Blob, FromGuest, Refusal};
use nacre_trust::{Algorithm, Digest};
use support::{Daemon, Said, blob, content};

#[test]
fn what_one_guest_puts_another_one_gets_from_any_offset() {
    let daemon = Daemon::start();
    let layer = content(1, 3_000_000);
    let (mut first, mut second) = (daemon.guest(), daemon.guest());
    assert_eq!(first.get(blob(&layer), 0), Err(Said::Miss));
    daemon.fill(&mut first, &layer);
    assert_eq!(second.get(blob(&layer), 0).unwrap(), layer);
    assert_eq!(second.get(blob(&layer), 2_999_999).unwrap(), layer[2_999_999..]);
    assert_eq!(first.get(blob(&layer), 1_000_001).unwrap(), layer[1_000_001..]);
    let other_size = Blob { size: 2_999_999, ..blob(&layer) };
    assert_eq!(second.get(other_size, 0), Err(Said::Miss));
    let found = daemon.statistics();
    assert_eq!((found.guests, found.guests_now), (2, 2));
    assert_eq!((found.gets, found.misses, found.hits_own), (5, 2, 3));
    assert_eq!((found.puts, found.bytes_put), (1, 3_000_000));
    assert_eq!((found.blobs_now, found.bytes_now), (1, 3_000_000));
    assert_eq!(found.bytes_own, 3_000_000 + 1 + 1_999_999);
    assert_eq!(daemon.ingests(), 0);
    assert_eq!(first.put(&layer), Err(Said::Refuse(Refusal::Present)));
}

#[test]
fn both_digests_name_blobs() {
    let daemon = Daemon::start();
    let layer = content(2, 100_000);
    let long = Blob { digest: Digest::of(Algorithm::Sha512, &layer), size: 100_000 };
    let mut guest = daemon.guest();
    guest.put_as(long, &layer).unwrap();
    daemon.wait("kept blob", |statistics| statistics.puts == 1);
    assert_eq!(guest.get(long, 7).unwrap(), layer[7..]);
    assert_eq!(guest.get(blob(&layer), 0), Err(Said::Miss), "that is another name");
}

#[test]
fn containerds_blobs_are_served_and_left_alone() {
    let daemon = Daemon::start();
    let layer = content(3, 300_000);
    let path = daemon.containerd_has(&layer);
    let partial = content(4, 1000);
    let ingest = daemon.config.containerd_content[0].join("ingest/x");
    std::fs::create_dir_all(&ingest).unwrap();
    std::fs::write(ingest.join("data"), &partial).unwrap();
    let mut guest = daemon.guest();
    assert_eq!(guest.get(blob(&layer), 0).unwrap(), layer);
    assert_eq!(guest.get(blob(&layer), 299_999).unwrap(), layer[299_999..]);
    assert_eq!(guest.get(blob(&partial), 0), Err(Said::Miss));
    let found = daemon.statistics();
    assert_eq!((found.hits_containerd, found.bytes_containerd), (2, 300_001));
    assert_eq!(found.blobs_now, 0);
    assert_eq!(std::fs::read(path).unwrap(), layer);
}

#[test]
fn namespaces_do_not_see_each_other_unless_they_share() {
    let allow = |config: &mut nacre_cache::Config| {
        config.namespaces.allow.extend(["default".to_owned(), "moby".to_owned()]);
    };
    let layer = content(5, 50_000);
    let apart = Daemon::with(allow);
    let listed = content(6, 10_000);
    apart.containerd_has(&listed);
    apart.fill(&mut apart.guest(), &layer);
    let mut other = apart.connect("default").unwrap();
    assert_eq!(other.get(blob(&layer), 0), Err(Said::Miss));
    assert_eq!(other.get(blob(&listed), 0), Err(Said::Miss), "containerd's are for k8s.io");
    assert_eq!(apart.guest().get(blob(&listed), 0).unwrap(), listed);
    apart.fill(&mut other, &layer);
    assert!(apart.file("default", &layer).exists() && apart.file("k8s.io", &layer).exists());

    let shared = Daemon::with(|config| {
        allow(config);
        config.namespaces.shared = true;
    });
    shared.fill(&mut shared.guest(), &layer);
    assert_eq!(shared.connect("moby").unwrap().get(blob(&layer), 0).unwrap(), layer);
    assert_eq!(shared.statistics().blobs_now, 1, "counted once");
}

#[test]
fn who_asks_while_another_guest_brings_the_blob_follows_it() {
    let daemon = Daemon::start();
    let layer = content(7, 400_000);
    let (mut putter, mut follower, mut late) = (daemon.guest(), daemon.guest(), daemon.guest());
    let put = putter.offer(blob(&layer));
    assert!(matches!(putter.answer(put), Said::Accept(400_000)));
    for piece in layer[..200_000].chunks(50_000) {
        putter.send(put, FromGuest::Data(piece));
    }
    let get = follower.ask(blob(&layer), 0, 1_000_000);
    assert_eq!(follower.answer(get), Said::Accept(0));
    let mut got = Vec::new();
    while got.len() < 200_000 {
        match follower.answer(get) {
            Said::Data(piece) => got.extend(piece),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(late.put(&layer), Err(Said::Refuse(Refusal::Present)));
    let late_get = late.ask(blob(&layer), 399_999, 1);
    assert_eq!(late.answer(late_get), Said::Accept(0));
    for piece in layer[200_000..].chunks(50_000) {
        putter.send(put, FromGuest::Data(piece));
    }
    got.extend(follower.read(get).unwrap());
    assert_eq!(got, layer);
    assert_eq!(late.answer(late_get), Said::Data(layer[399_999..].to_vec()));
    assert_eq!(late.answer(late_get), Said::End);
    let found = daemon.wait("kept blob", |statistics| statistics.puts == 1);
    assert_eq!((found.hits_followed, found.bytes_followed), (2, 400_001));
}

#[test]
fn followers_of_a_putter_that_dies_or_lies_are_sent_to_the_registry() {
    let daemon = Daemon::start();
    let layer = content(8, 300_000);
    let mut follower = daemon.guest();
    let begin = |follower: &mut support::Guest| {
        let mut putter = daemon.guest();
        let put = putter.offer(blob(&layer));
        assert!(matches!(putter.answer(put), Said::Accept(_)));
        putter.send(put, FromGuest::Data(&layer[..60_000]));
        let get = follower.ask(blob(&layer), 0, 1_000_000);
        assert_eq!(follower.answer(get), Said::Accept(0));
        let mut got = 0;
        while got < 60_000 {
            let Said::Data(piece) = follower.answer(get) else { panic!() };
            got += piece.len();
        }
        (putter, put, get)
    };
    let (putter, _, get) = begin(&mut follower);
    drop(putter);
    assert_eq!(follower.answer(get), Said::Cancel);
    // Given up in order.
    let (mut putter, put, get) = begin(&mut follower);
    putter.send(put, FromGuest::Cancel);
    assert_eq!(follower.answer(get), Said::Cancel);
    assert_eq!(putter.answer(put), Said::Cancel);
    // Another content than was announced.
    let (mut putter, put, get) = begin(&mut follower);
    let mut lie = layer[60_000..].to_vec();
    lie[0] ^= 1;
    for piece in lie.chunks(60_000) {
        putter.send(put, FromGuest::Data(piece));
    }
    assert!(follower.read(get).is_err_and(|said| said == Said::Cancel));
    assert_eq!(putter.answer(put), Said::Cancel);
    let found = daemon.statistics();
    assert_eq!((found.puts, found.puts_lost, found.blobs_now), (0, 3, 0));
    assert_eq!(daemon.ingests(), 0);
    // Nobody is kept from doing better.
    daemon.fill(&mut putter, &layer);
    assert_eq!(follower.get(blob(&layer), 0).unwrap(), layer);
}

#[test]
fn who_follows_a_guest_that_dawdles_is_sent_to_the_registry() {
    let daemon = Daemon::start();
    let layer = content(11, 300_000);
    let (mut putter, mut follower) = (daemon.guest(), daemon.guest());
    let put = putter.offer(blob(&layer));
    assert!(matches!(putter.answer(put), Said::Accept(_)));
    putter.send(put, FromGuest::Data(&layer[..1000]));
    let get = follower.ask(blob(&layer), 0, 1_000_000);
    assert_eq!(follower.answer(get), Said::Accept(0));
    assert_eq!(follower.answer(get), Said::Data(layer[..1000].to_vec()));
    putter.send(put, FromGuest::Data(&layer[1000..2000]));
    assert_eq!(follower.answer(get), Said::Data(layer[1000..2000].to_vec()));
    assert_eq!(follower.answer(get), Said::Cancel);
    // The put itself may go on.
    for piece in layer[2000..].chunks(50_000) {
        putter.send(put, FromGuest::Data(piece));
    }
    daemon.wait("kept blob", |statistics| statistics.puts == 1);
    assert_eq!(follower.get(blob(&layer), 2000).unwrap(), layer[2000..]);
}

#[test]
fn guests_that_start_together_wait_for_the_first_one() {
    let daemon = Daemon::start();
    let layer = content(9, 200_000);
    let (mut first, mut second) = (daemon.guest(), daemon.guest());
    assert_eq!(first.get(blob(&layer), 0), Err(Said::Miss));
    let get = second.ask(blob(&layer), 0, 1_000_000);
    first.put(&layer).unwrap();
    assert_eq!(second.answer(get), Said::Accept(0));
    assert_eq!(second.read(get).unwrap(), layer);
    assert_eq!(daemon.statistics().misses, 1);
    // Where the first one never brings it, the others are not held up for long, and not one by one.
    let private = content(10, 1000);
    let begun = Instant::now();
    assert_eq!(first.get(blob(&private), 0), Err(Said::Miss));
    let waiting: Vec<_> = (0..16).map(|_| second.ask(blob(&private), 0, 1000)).collect();
    for _ in &waiting {
        assert_eq!(second.hear().1, Said::Miss);
    }
    // One after the other they would take 24 seconds.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn the_longest_unused_goes_first_also_after_a_restart() {
    let mut daemon = Daemon::with(|config| config.max_bytes = 1024 * 1024);
    let layers: Vec<_> = (0..4).map(|seed| content(20 + seed, 400_000)).collect();
    let mut guest = daemon.guest();
    daemon.fill(&mut guest, &layers[0]);
    daemon.fill(&mut guest, &layers[1]);
    guest.get(blob(&layers[0]), 0).unwrap();
    daemon.fill(&mut guest, &layers[2]);
    assert_eq!(guest.get(blob(&layers[1]), 0), Err(Said::Miss), "used before the others");
    guest.get(blob(&layers[0]), 0).unwrap();
    let found = daemon.statistics();
    assert_eq!((found.evictions, found.bytes_evicted, found.blobs_now), (1, 400_000, 2));
    assert!(!daemon.file("k8s.io", &layers[1]).exists());

    drop(guest);
    daemon.stop();
    assert!(!daemon.config.socket.exists());
    std::fs::write(daemon.config.directory.join("ingest/7"), "left by a crash").unwrap();
    std::fs::write(daemon.config.directory.join("namespaces/k8s.io/sha256/notes"), "x").unwrap();
    daemon.run();
    assert_eq!(daemon.ingests(), 0);
    assert_eq!(daemon.statistics().blobs_now, 2);
    let mut guest = daemon.guest();
    daemon.fill(&mut guest, &layers[3]);
    assert_eq!(guest.get(blob(&layers[2]), 0), Err(Said::Miss));
    assert_eq!(guest.get(blob(&layers[0]), 0).unwrap(), layers[0]);

    daemon.stop();
    daemon.config.max_bytes = 1024 * 1024;
    std::fs::write(daemon.file("k8s.io", b"abc"), content(1, 900_000)).unwrap();
    daemon.run();
    assert_eq!(daemon.statistics().blobs_now, 1, "a lower limit, or a fuller directory");
}

#[test]
fn blobs_that_rot_are_not_served_twice() {
    let daemon = Daemon::start();
    let (own, containerd) = (content(30, 200_000), content(31, 200_000));
    let mut guest = daemon.guest();
    daemon.fill(&mut guest, &own);
    let paths = [daemon.file("k8s.io", &own), daemon.containerd_has(&containerd)];
    for (content, path) in [&own, &containerd].into_iter().zip(&paths) {
        let mut rotten = content.clone();
        rotten[100_000] ^= 1;
        std::fs::write(path, &rotten).unwrap();
        assert_eq!(guest.get(blob(content), 0), Err(Said::Cancel));
        assert_eq!(guest.get(blob(content), 0), Err(Said::Miss));
    }
    assert!(!paths[0].exists() && paths[1].exists());
    assert_eq!(daemon.statistics().corrupt, 2);
    // Shorter or longer than it was is no blob at all.
    daemon.fill(&mut guest, &own);
    std::fs::write(&paths[0], &own[1..]).unwrap();
    assert_eq!(guest.get(blob(&own), 0), Err(Said::Miss));
    daemon.fill(&mut guest, &own);
    assert_eq!(guest.get(blob(&own), 0).unwrap(), own);
}
