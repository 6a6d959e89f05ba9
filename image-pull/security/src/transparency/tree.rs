//! Merkle trees of transparency logs (RFC 9162, section 2.1).

use ring::digest::{Context, SHA256};

/// Hash of an entry.
pub(super) fn leaf(entry: &[u8]) -> [u8; 32] {
    hash(&[&[0], entry])
}

/// Root of the tree of `size` entries that has `leaf` at `index`, by the hashes beside its path
/// (section 2.1.3.2). `None`: they are not such hashes.
pub(super) fn root(index: u64, size: u64, leaf: [u8; 32], hashes: &[[u8; 32]]) -> Option<[u8; 32]> {
    if index >= size {
        return None;
    }
    let (mut node, mut last, mut root) = (index, size - 1, leaf);
    for sibling in hashes {
        if last == 0 {
            return None;
        }
        if node % 2 == 1 || node == last {
            root = hash(&[&[1], sibling, &root]);
            // At the right edge, levels without a sibling are passed over.
            while node % 2 == 0 && node != 0 {
                node /= 2;
                last /= 2;
            }
        } else {
            root = hash(&[&[1], &root, sibling]);
        }
        node /= 2;
        last /= 2;
    }
    (last == 0).then_some(root)
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root and paths by the definition (RFC 9162, sections 2.1.1 and 2.1.3.1).
    fn tree(leaves: &[[u8; 32]]) -> [u8; 32] {
        if let [one] = leaves {
            return *one;
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        hash(&[&[1], &tree(left), &tree(right)])
    }

    fn path(index: usize, leaves: &[[u8; 32]]) -> Vec<[u8; 32]> {
        if leaves.len() == 1 {
            return Vec::new();
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        let (mut path, other) = if index < left.len() {
            (path(index, left), tree(right))
        } else {
            (path(index - left.len(), right), tree(left))
        };
        path.push(other);
        path
    }

    fn split(length: usize) -> usize {
        length.next_power_of_two() / 2
    }

    #[test]
    fn every_entry_of_small_trees_is_proved_and_no_other() {
        for size in 1..20_usize {
            let leaves: Vec<[u8; 32]> = (0..size).map(|i| leaf(&i.to_be_bytes())).collect();
            let expected = tree(&leaves);
            for index in 0..size {
                let hashes = path(index, &leaves);
                for other in 0..size {
                    let found = root(other as u64, size as u64, leaves[index], &hashes);
                    assert_eq!(found == Some(expected), other == index, "{index} {other} {size}");
                }
                let wrong = root(index as u64, size as u64, leaf(b"x"), &hashes);
                assert_ne!(wrong, Some(expected));
                let longer = [hashes.as_slice(), &[[0; 32]]].concat();
                assert_eq!(root(index as u64, size as u64, leaves[index], &longer), None);
            }
            assert_eq!(root(size as u64, size as u64, leaves[0], &[]), None);
        }
    }
}
