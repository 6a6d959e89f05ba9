//! Guests and others who do what they should not: they hurt nobody but themselves.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::time::Duration;

use nacre_cache::{Server, ServerError, StoreError};
use nacre_protocol::blob_cache::{
    Blob, CREDIT_LIMIT, FromCache, FromGuest, PIECE_LIMIT, REQUESTS_LIMIT, Refusal, VERDICT_SIZE,
    Verdict,
};
use proptest::prelude::*;
use support::{Daemon, Said, blob, content};

#[test]
fn who_breaks_the_protocol_is_cut_off_and_others_go_on() {
    let daemon = Daemon::start();
    let layer = content(1, 200_000);
    let mut honest = daemon.guest();
    daemon.fill(&mut honest, &layer);
    let get = FromGuest::Get { blob: blob(&layer), offset: 0, credit: 100 };
    let frames = |frames: &[(u32, FromGuest<'_>)]| {
        let mut bytes = Vec::new();
        for (number, frame) in frames {
            frame.write(*number, &mut bytes).unwrap();
        }
        bytes
    };
    let mut from_cache = Vec::new();
    FromCache::Miss.write(1, &mut from_cache).unwrap();
    let other = content(2, 5000);
    let put = FromGuest::Put { blob: blob(&other) };
    let attacks = [
        b"GET /v2/ HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0; 4096],
        from_cache,
        // Requests that were never made, and numbers used twice.
        frames(&[(1, FromGuest::Data(b"x"))]),
        frames(&[(9, FromGuest::Cancel)]),
        frames(&[(5, get), (5, get)]),
        frames(&[(5, get), (4, get)]),
        // Frames that do not fit their request, and credit beyond the limit.
        frames(&[(1, get), (1, FromGuest::Data(b"x"))]),
        frames(&[(1, get), (1, FromGuest::End)]),
        frames(&[(1, get), (1, FromGuest::Credit(CREDIT_LIMIT))]),
        frames(&[(1, put), (1, FromGuest::Credit(1))]),
        // Data that nobody gave credit for.
        frames(&[(1, put), (1, FromGuest::Data(&other)), (1, FromGuest::Data(&other))]),
    ];
    for (index, attack) in attacks.iter().enumerate() {
        let mut guest = daemon.guest();
        // It may be cut off before it has sent all of it.
        let _ = guest.stream.write_all(attack);
        while guest.hear().1 != Said::Closed {}
        daemon.wait("violation", |statistics| statistics.violations == index as u64 + 1);
    }
    assert_eq!(honest.get(blob(&layer), 0).unwrap(), layer);
    assert_eq!(daemon.wait("one guest", |now| now.guests_now == 1).blobs_now, 1);
    assert_eq!(daemon.ingests(), 0);
}

/// A frame with a small number, so that many of them meet.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::collection::vec(any::<u8>(), 1..300);
    (0..8_u8, 1..6_u32, 0..4_u8, 0..3000_u64, piece).prop_map(|(kind, number, name, at, piece)| {
        let blob = blob(&content(name, 1000 * (usize::from(name) + 1)));
        let credit = u32::try_from(at + 1).unwrap();
        let frame = match kind {
            0 | 1 => FromGuest::Get { blob, offset: at % blob.size, credit },
            2 | 3 => FromGuest::Put { blob },
            4 => FromGuest::Data(&piece),
            5 => FromGuest::Credit(credit),
            6 => FromGuest::End,
            _ => FromGuest::Cancel,
        };
        let mut bytes = Vec::new();
        frame.write(number, &mut bytes).unwrap();
        bytes
    })
}

#[test]
fn no_order_of_frames_harms_the_daemon() {
    let daemon = Daemon::start();
    let layer = content(9, 50_000);
    let honest = RefCell::new(daemon.guest());
    daemon.fill(&mut honest.borrow_mut(), &layer);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |(frames in proptest::collection::vec(frame(), 1..40), garbage: Vec<u8>)| {
        let mut guest = daemon.guest();
        // Numbers go upwards at first, so that requests are made at all.
        for number in 1..=3 {
            let blob = blob(&content(number, 1000 * (usize::from(number) + 1)));
            guest.offer(blob);
            guest.ask(blob, 0, 700);
        }
        let _ = guest.stream.write_all(&frames.concat());
        let _ = guest.stream.write_all(&garbage);
        let got = honest.borrow_mut().get(blob(&layer), 49_000).unwrap();
        prop_assert_eq!(got, &layer[49_000..]);
    });
    daemon.wait("one guest", |statistics| statistics.guests_now == 1);
    // No blob is there that nobody has sent.
    assert_eq!(daemon.statistics().blobs_now, 1);
    assert_eq!(daemon.ingests(), 0);
    assert_eq!(honest.borrow_mut().get(blob(&layer), 0).unwrap(), layer);
}

#[test]
fn only_guests_of_served_namespaces_are_let_in_and_only_so_many() {
    let daemon = Daemon::with(|config| config.max_guests = 2);
    assert_eq!(daemon.connect("default").err(), Some(Verdict::Namespace));
    let (first, _second) = (daemon.guest(), daemon.guest());
    assert_eq!(daemon.connect("k8s.io").err(), Some(Verdict::Full));
    drop(first);
    daemon.wait("free place", |statistics| statistics.guests_now == 1);
    let _third = daemon.guest();
    let found = daemon.statistics();
    assert_eq!((found.guests, found.guests_refused), (3, 2));
    for strange in [&b"GET / HTTP/1.1\r\n"[..], b"NACREBLB\x02\x00\x01\x06\x01\x00\x00\x00"] {
        let mut stream = daemon.raw(strange);
        let mut verdict = [0; VERDICT_SIZE];
        stream.read_exact(&mut verdict).unwrap();
        assert_eq!(Verdict::parse(&verdict), Ok(Verdict::Unknown));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and no more");
    }
}

#[test]
fn nothing_is_sent_without_credit_and_a_silent_reader_holds_up_nobody() {
    let daemon = Daemon::start();
    let layer = content(3, 1_500_000);
    let mut guest = daemon.guest();
    daemon.fill(&mut guest, &layer);
    // It asks for as much as it may, and reads nothing.
    let mut silent = daemon.guest();
    for _ in 0..REQUESTS_LIMIT {
        silent.ask(blob(&layer), 0, CREDIT_LIMIT);
    }
    // One that gave credit for 10 bytes gets 10, while other requests of its own go on.
    let slow = guest.ask(blob(&layer), 5, 10);
    assert_eq!(guest.answer(slow), Said::Accept(0));
    assert_eq!(guest.answer(slow), Said::Data(layer[5..15].to_vec()));
    assert_eq!(guest.get(blob(&layer), 0).unwrap(), layer);
    assert_eq!(guest.get(blob(&layer), 1_499_990).unwrap(), layer[1_499_990..]);
    guest.send(slow, FromGuest::Credit(1));
    assert_eq!(guest.answer(slow), Said::Data(vec![layer[15]]));
    guest.send(slow, FromGuest::Cancel);
    assert_eq!(guest.get(blob(&layer), 1_499_999).unwrap(), layer[1_499_999..]);
    assert_eq!(daemon.statistics().violations, 0);
}

#[test]
fn floods_of_requests_are_refused_and_old_frames_mean_nothing() {
    let daemon = Daemon::start();
    let layer = content(4, 100_000);
    let mut guest = daemon.guest();
    daemon.fill(&mut guest, &layer);
    let open: Vec<_> = (0..REQUESTS_LIMIT).map(|_| guest.ask(blob(&layer), 0, 1)).collect();
    for _ in 0..2 * REQUESTS_LIMIT {
        let (_, said) = guest.hear();
        assert!(matches!(said, Said::Accept(0) | Said::Data(_)), "{said:?}");
    }
    assert_eq!(guest.get(blob(&layer), 0), Err(Said::Refuse(Refusal::Busy)));
    assert_eq!(guest.put(&content(5, 10)), Err(Said::Refuse(Refusal::Busy)));
    for number in &open {
        guest.send(*number, FromGuest::Cancel);
        guest.send(*number, FromGuest::Cancel);
    }
    // The places are free once the tasks have noticed.
    let got = (0..1000).find_map(|_| match guest.get(blob(&layer), 0) {
        Err(Said::Refuse(Refusal::Busy)) => {
            std::thread::sleep(Duration::from_millis(5));
            None
        }
        other => Some(other),
    });
    assert_eq!(got.unwrap().unwrap(), layer);
    for number in open {
        guest.send(number, FromGuest::Credit(CREDIT_LIMIT));
        guest.send(number, FromGuest::Data(&[0; PIECE_LIMIT]));
    }
    assert_eq!(guest.get(blob(&layer), 99_999).unwrap(), layer[99_999..]);
    assert_eq!(daemon.statistics().violations, 0);
}

#[test]
fn nobody_fills_the_disk() {
    let daemon = Daemon::with(|config| {
        config.max_bytes = 1024 * 1024;
        config.max_put_bytes = 3 * 1024 * 1024;
    });
    let mut guest = daemon.guest();
    let small = content(6, 1000);
    daemon.fill(&mut guest, &small);
    let huge = Blob { size: 1024 * 1024 + 1, ..blob(b"huge") };
    assert_eq!(guest.put_as(huge, b""), Err(Said::Refuse(Refusal::TooLarge)));
    // What is announced takes nothing from what is kept before it comes, but counts for others.
    let announced = guest.offer(Blob { size: 1024 * 1024, ..blob(b"announced") });
    assert!(matches!(guest.answer(announced), Said::Accept(_)));
    assert_eq!(guest.get(blob(&small), 0).unwrap(), small);
    let mut other = daemon.guest();
    assert_eq!(other.put(&content(7, 500)), Err(Said::Refuse(Refusal::Busy)));
    guest.send(announced, FromGuest::Cancel);
    assert_eq!(guest.answer(announced), Said::Cancel);
    daemon.fill(&mut other, &content(7, 500));
    // The guest has had its share, whatever came of it.
    let third = Blob { size: 1024 * 1024, ..blob(b"third") };
    assert_eq!(guest.put_as(third, b""), Err(Said::Refuse(Refusal::Spent)));
    assert_eq!(guest.get(blob(&small), 0).unwrap(), small);
    assert_eq!(daemon.statistics().evictions, 0);
    // Small blobs are charged for their inodes.
    let mut many = daemon.guest();
    for seed in 0..=255 {
        daemon.fill(&mut many, &[seed, 1]);
    }
    let found = daemon.statistics();
    assert!(found.blobs_now <= 256 && found.evictions >= 2, "{found:?}");
}

#[test]
fn a_directory_and_a_socket_have_one_daemon() {
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let taken = Server::bind(&daemon.config).unwrap_err();
    assert!(matches!(taken, ServerError::Store(StoreError::Taken(_))), "{taken}");
    let mut other = daemon.config.clone();
    other.directory = daemon.directory.path().join("other");
    let taken = Server::bind(&other).unwrap_err();
    assert!(matches!(taken, ServerError::Taken(_)), "{taken}");
    // A socket that a crash has left is in nobody's way.
    other.socket = daemon.directory.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&other.socket).unwrap());
    Server::bind(&other).unwrap();
}

#[test]
fn the_end_leaves_no_halves() {
    let mut daemon = Daemon::start();
    let layer = content(8, 200_000);
    let mut guest = daemon.guest();
    let put = guest.offer(blob(&layer));
    assert!(matches!(guest.answer(put), Said::Accept(_)));
    guest.send(put, FromGuest::Data(&layer[..50_000]));
    daemon.stop();
    assert_eq!(guest.hear().1, Said::Closed);
    assert_eq!(daemon.ingests(), 0);
    assert!(!daemon.config.socket.exists());
    daemon.run();
    assert_eq!(daemon.statistics().blobs_now, 0);
}
