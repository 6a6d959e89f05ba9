//! Which of the guest's memory is private (`KVM_SET_MEMORY_ATTRIBUTES`).

/// Ranges of guest addresses that are private: apart from each other, in no order.
#[derive(Default)]
pub(crate) struct PrivateMemory(Vec<(u64, u64)>);

impl PrivateMemory {
    pub(crate) fn set(&mut self, start: u64, end: u64, private: bool) {
        let mut ranges = Vec::with_capacity(self.0.len() + 2);
        for &(from, to) in &self.0 {
            ranges.push((from, to.min(start)));
            ranges.push((from.max(end), to));
        }
        if private {
            ranges.push((start, end));
        }
        ranges.retain(|(from, to)| from < to);
        self.0 = ranges;
    }

    pub(crate) fn contains(&self, start: u64, end: u64) -> bool {
        let covered = |&(from, to): &(u64, u64)| to.min(end).saturating_sub(from.max(start));
        self.0.iter().map(covered).sum::<u64>() == end.saturating_sub(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_about_an_address_counts() {
        let mut memory = PrivateMemory::default();
        assert!(!memory.contains(0, 1));
        memory.set(10, 30, true);
        memory.set(30, 40, true);
        assert!(memory.contains(10, 40), "ranges that touch are one");
        assert!(!memory.contains(9, 40) && !memory.contains(10, 41));
        memory.set(20, 35, false);
        assert!(memory.contains(10, 20) && memory.contains(35, 40));
        assert!(!memory.contains(10, 21) && !memory.contains(34, 40));
        memory.set(0, 100, true);
        assert!(memory.contains(0, 100), "what was counted before is not counted twice");
    }
}
