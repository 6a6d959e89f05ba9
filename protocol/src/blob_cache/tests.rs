use nacre_trust::Algorithm;

use super::*;

fn blob(algorithm: Algorithm) -> Blob {
    Blob { digest: Digest::of(algorithm, b"abc"), size: 0x02_0304_0506 }
}

fn split(frame: &[u8]) -> Result<(Header, &[u8]), Violation> {
    let (head, payload) = frame.split_first_chunk().expect("a whole header");
    Ok((Header::parse(head)?, payload))
}

#[test]
fn frames_of_a_guest_are_laid_out_as_documented() {
    let mut bytes = Vec::new();
    let get = FromGuest::Get { blob: blob(Algorithm::Sha256), offset: 7, credit: 65536 };
    get.write(0x0a0b, &mut bytes).unwrap();
    assert_eq!(bytes[..12], [1, 0, 0, 0, 0x0b, 0x0a, 0, 0, 56, 0, 0, 0]);
    assert_eq!(bytes[12..32], [6, 5, 4, 3, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[32..36], [1, 0, 0, 0]);
    assert_eq!(bytes[36..40], [0xba, 0x78, 0x16, 0xbf]);
    assert_eq!(bytes.len(), 12 + 56);
    bytes.clear();
    let put = FromGuest::Put { blob: blob(Algorithm::Sha512) };
    put.write(1, &mut bytes).unwrap();
    assert_eq!(bytes[..12], [2, 0, 0, 0, 1, 0, 0, 0, 76, 0, 0, 0]);
    assert_eq!(bytes[20..24], [2, 0, 0, 0]);
    assert_eq!(bytes.len(), 12 + 76);
}

#[test]
fn what_is_written_is_read_again() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for frame in [
            FromGuest::Get { blob: blob(algorithm), offset: 0, credit: 1 },
            FromGuest::Get { blob: blob(algorithm), offset: 5, credit: CREDIT_LIMIT },
            FromGuest::Put { blob: blob(algorithm) },
            FromGuest::Data(&[7; PIECE_LIMIT]),
            FromGuest::End,
            FromGuest::Cancel,
            FromGuest::Credit(4096),
        ] {
            let mut bytes = Vec::new();
            frame.write(9, &mut bytes).unwrap();
            let (header, payload) = split(&bytes).unwrap();
            assert_eq!((header.request(), header.size()), (9, payload.len()));
            assert_eq!(FromGuest::parse(&header, payload), Ok(frame));
        }
    }
    for frame in [
        FromCache::Accept(0),
        FromCache::Accept(65536),
        FromCache::Miss,
        FromCache::Refuse(Refusal::Busy),
        FromCache::Refuse(Refusal::Failed),
        FromCache::Data(b"x"),
        FromCache::End,
        FromCache::Cancel,
        FromCache::Credit(1),
    ] {
        let mut bytes = Vec::new();
        frame.write(u32::MAX, &mut bytes).unwrap();
        let (header, payload) = split(&bytes).unwrap();
        assert_eq!(header.request(), u32::MAX);
        assert_eq!(FromCache::parse(&header, payload), Ok(frame));
    }
    let mut bytes = Vec::new();
    FromCache::Data(b"abc").write(3, &mut bytes).unwrap();
    assert_eq!(bytes[..HEADER_SIZE], Header::of_data(3, 3).unwrap());
}

#[test]
fn values_beyond_their_limits_are_never_written() {
    let mut bytes = vec![1, 2, 3];
    let large = [0; PIECE_LIMIT + 1];
    let blob = blob(Algorithm::Sha256);
    for (frame, problem) in [
        (FromGuest::Data(&[]), Violation::Size { kind: 3, size: 0 }),
        (FromGuest::Data(&large), Violation::Size { kind: 3, size: 65537 }),
        (FromGuest::Credit(0), Violation::Credit),
        (FromGuest::Credit(CREDIT_LIMIT + 1), Violation::Credit),
        (FromGuest::Get { blob, offset: 0, credit: 0 }, Violation::Credit),
        (
            FromGuest::Get { blob, offset: blob.size, credit: 1 },
            Violation::Blob { size: blob.size, offset: blob.size },
        ),
        (FromGuest::Put { blob: Blob { size: 0, ..blob } }, Violation::Blob { size: 0, offset: 0 }),
        (
            FromGuest::Put { blob: Blob { size: BLOB_LIMIT + 1, ..blob } },
            Violation::Blob { size: BLOB_LIMIT + 1, offset: 0 },
        ),
    ] {
        assert_eq!(frame.write(1, &mut bytes), Err(problem));
        assert_eq!(bytes, [1, 2, 3]);
    }
    assert_eq!(FromGuest::End.write(0, &mut bytes), Err(Violation::Request(0)));
    assert_eq!(Header::of_data(1, 0), Err(Violation::Size { kind: 3, size: 0 }));
    assert!(Header::of_data(1, PIECE_LIMIT + 1).is_err());
}

#[test]
fn frames_that_break_the_rules_are_refused() {
    let mut get = Vec::new();
    FromGuest::Get { blob: blob(Algorithm::Sha256), offset: 7, credit: 9 }
        .write(1, &mut get)
        .unwrap();
    let refused = |offset: usize, value: u8| {
        let mut bytes = get.clone();
        bytes[offset] = value;
        split(&bytes).and_then(|(header, payload)| FromGuest::parse(&header, payload)).unwrap_err()
    };
    assert_eq!(refused(0, 0), Violation::Kind(0));
    assert_eq!(refused(0, 10), Violation::Kind(10));
    assert_eq!(refused(0, 4), Violation::Size { kind: 4, size: 56 });
    assert_eq!(refused(1, 1), Violation::Reserved);
    assert_eq!(refused(4, 0), Violation::Request(0));
    assert_eq!(refused(8, 55), Violation::Size { kind: 1, size: 55 });
    assert_eq!(refused(11, 0xff), Violation::Size { kind: 1, size: 0xff00_0038 });
    assert_eq!(refused(8, 88), Violation::Size { kind: 1, size: 56 });
    assert_eq!(refused(19, 1), Violation::Blob { size: 0x0100_0002_0304_0506, offset: 7 });
    assert_eq!(refused(30, 0x10), Violation::Credit);
    assert_eq!(refused(28, 0), Violation::Credit);
    assert_eq!(refused(32, 2), Violation::Digest);
    assert_eq!(refused(32, 3), Violation::Digest);
    assert_eq!(refused(33, 1), Violation::Reserved);
}

#[test]
fn nobody_speaks_for_the_other_side() {
    let mut bytes = Vec::new();
    FromGuest::Put { blob: blob(Algorithm::Sha256) }.write(1, &mut bytes).unwrap();
    let (header, payload) = split(&bytes).unwrap();
    assert_eq!(FromCache::parse(&header, payload), Err(Violation::Kind(2)));
    for frame in [FromCache::Accept(5), FromCache::Miss, FromCache::Refuse(Refusal::Spent)] {
        let mut bytes = Vec::new();
        frame.write(1, &mut bytes).unwrap();
        let (header, payload) = split(&bytes).unwrap();
        assert_eq!(FromGuest::parse(&header, payload), Err(Violation::Kind(bytes[0])));
    }
    let refuse = [9, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 99, 0, 0, 0];
    let (header, payload) = split(&refuse).unwrap();
    assert_eq!(FromCache::parse(&header, payload), Err(Violation::Refusal(99)));
}

#[test]
fn an_allowance_is_neither_overdrawn_nor_overfilled() {
    let mut allowance = Allowance::default();
    assert_eq!(allowance.spend(1), Err(Violation::Overrun));
    allowance.give(CREDIT_LIMIT).unwrap();
    assert_eq!(allowance.give(1), Err(Violation::Credit));
    assert_eq!(allowance.give(u32::MAX), Err(Violation::Credit));
    allowance.spend(CREDIT_LIMIT as usize - 1).unwrap();
    assert_eq!(allowance.left(), 1);
    assert_eq!(allowance.spend(2), Err(Violation::Overrun));
    assert_eq!(allowance.spend(usize::MAX), Err(Violation::Overrun));
    assert_eq!(allowance.left(), 1, "a refused step changes nothing");
}

#[test]
fn a_greeting_names_namespace_and_sandbox() {
    let hello = Hello::Guest { namespace: "k8s.io".into(), sandbox: "0a1b_2".into() };
    let bytes = hello.to_bytes().unwrap();
    assert_eq!(bytes[..16], *b"NACREBLB\x01\x00\x01\x06\x06\x00\x00\x00");
    assert_eq!(&bytes[16..], b"k8s.io0a1b_2");
    let (head, rest) = bytes.split_first_chunk().unwrap();
    assert_eq!(Hello::rest(head), Ok(rest.len()));
    assert_eq!(Hello::parse(head, rest), Ok(hello));
    let statistics = Hello::Statistics.to_bytes().unwrap();
    let (head, rest) = statistics.split_first_chunk().unwrap();
    assert_eq!(Hello::parse(head, rest), Ok(Hello::Statistics));
    let refused = |offset: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[offset] = value;
        let (head, rest) = bytes.split_first_chunk().unwrap();
        Hello::parse(head, rest).unwrap_err()
    };
    assert_eq!(refused(0, b'M'), Violation::Magic);
    assert_eq!(refused(8, 2), Violation::Version(2));
    assert_eq!(refused(10, 3), Violation::Hello("purpose"));
    assert_eq!(refused(10, 2), Violation::Hello("purpose"));
    assert_eq!(refused(11, 77), Violation::Hello("names' sizes"));
    assert_eq!(refused(11, 7), Violation::Hello("names' sizes"));
    assert_eq!(refused(13, 1), Violation::Reserved);
    assert_eq!(refused(16, b'/'), Violation::Hello("namespace"));
    assert_eq!(refused(16, 0xff), Violation::Hello("namespace"));
    assert_eq!(refused(22, b'/'), Violation::Hello("sandbox"));
    let none = Hello::Guest { namespace: String::new(), sandbox: "a".into() };
    assert_eq!(none.to_bytes(), Err(Violation::Hello("namespace")));
    let long = Hello::Guest { namespace: "a".into(), sandbox: "a".repeat(300) };
    assert_eq!(long.to_bytes(), Err(Violation::Hello("sandbox")));
}

#[test]
fn namespaces_are_file_names() {
    for name in ["k8s.io", "default", "a", "moby-2_x"] {
        assert!(is_namespace(name), "{name}");
    }
    for name in ["", ".", "..", "a..b", "-a", "a/", "a b", "ä", &"a".repeat(77)] {
        assert!(!is_namespace(name), "{name}");
    }
}

#[test]
fn a_verdict_is_one_of_four() {
    for verdict in [Verdict::Welcome, Verdict::Unknown, Verdict::Namespace, Verdict::Full] {
        assert_eq!(Verdict::parse(&verdict.to_bytes()), Ok(verdict));
    }
    let mut other = Verdict::Full.to_bytes();
    other[8] = 4;
    assert_eq!(Verdict::parse(&other), Err(Violation::Refusal(4)));
    other[0] = 0;
    assert_eq!(Verdict::parse(&other), Err(Violation::Magic));
}
