//! Writing the log: one thread, which puts down all entries that wait in one go and then waits for
//! the disk once.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::chain::Head;
use super::read::{file_name, files, read_lines};
use super::{Action, AuditError, Event, LineError, Outcome};

/// Entries that may wait.
const QUEUE: usize = 1024;
/// Entries that are put down in one go.
const BATCH: usize = 256;
/// How many bytes of a torn line are kept in the record of its removal.
const TORN_SHOWN: usize = 4096;

struct Order {
    /// Without one, only the place in the queue counts.
    event: Option<Event>,
    done: oneshot::Sender<Result<u64, AuditError>>,
}

/// The open log.
pub(crate) struct AuditLog {
    directory: PathBuf,
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Of what is on disk.
    head: Arc<Mutex<Head>>,
}

impl AuditLog {
    /// Opens the log in `directory` or begins one. A torn last line is cut off, and that is recorded.
    /// `known` is how far it went once: a log that does not is refused.
    pub(crate) fn open(
        directory: &Path,
        rotate_bytes: u64,
        known: Option<&Head>,
    ) -> Result<AuditLog, AuditError> {
        let at = |error| AuditError::File { path: directory.to_owned(), error };
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
            .map_err(at)?;
        let mut writer = Writer::open(directory, rotate_bytes, known)?;
        let head = writer.told.clone();
        let (orders, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(at)?;
        Ok(AuditLog {
            directory: directory.to_owned(),
            orders: Mutex::new(Some(orders)),
            thread: Mutex::new(Some(thread)),
            head,
        })
    }

    /// How far the log goes on disk.
    pub(crate) fn head(&self) -> Head {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes an entry; on return it is on disk. Its number.
    pub(crate) async fn append(&self, event: Event) -> Result<u64, AuditError> {
        self.order(Some(event)).await?.await.map_err(|_| AuditError::Closed)?
    }

    /// Writes an entry soon. It is on disk before any entry that is asked for later.
    pub(crate) async fn note(&self, event: Event) -> Result<(), AuditError> {
        self.order(Some(event)).await.map(drop)
    }

    /// Waits until all is on disk that was to be written before. Whoever reads the log wants that.
    pub(crate) async fn settle(&self) -> Result<(), AuditError> {
        self.order(None).await?.await.map_err(|_| AuditError::Closed)?.map(drop)
    }

    async fn order(
        &self,
        event: Option<Event>,
    ) -> Result<oneshot::Receiver<Result<u64, AuditError>>, AuditError> {
        let sender = self.orders.lock().map_err(|_| AuditError::Closed)?.clone();
        let (done, written) = oneshot::channel();
        let sent = sender.ok_or(AuditError::Closed)?.send(Order { event, done }).await;
        sent.map(|()| written).map_err(|_| AuditError::Closed)
    }

    /// Writes what waits and closes the log.
    pub(crate) fn close(&self) {
        if let Ok(mut orders) = self.orders.lock() {
            orders.take();
        }
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            // It ends when all senders are gone; a panic there was told by the panic itself.
            let _ = thread.join();
        }
    }
}

struct Writer {
    directory: PathBuf,
    rotate_bytes: u64,
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    bytes: u64,
    head: Head,
    /// The same, for others.
    told: Arc<Mutex<Head>>,
    /// The file may hold more than its whole lines, and could not be cut.
    broken: bool,
}

impl Writer {
    fn open(
        directory: &Path,
        rotate_bytes: u64,
        known: Option<&Head>,
    ) -> Result<Writer, AuditError> {
        let all = files(directory)?;
        let path = all.last().cloned().unwrap_or_else(|| directory.join(file_name(1)));
        let fresh = all.is_empty();
        let file = open_file(&path)?;
        if fresh {
            sync_directory(directory)?;
        }
        let mut head = Head::default();
        // Of older files only the last line counts here; `verify` reads them all.
        if let [.., before, _] = all.as_slice() {
            head = last_head(before)?;
        }
        let single = all.len() < 2;
        let mut first = single;
        compare(&head, known)?;
        let whole = read_lines(&path, |line, text| {
            let followed = head.follow(text, first);
            first = false;
            followed.map_err(|error| AuditError::Line { path: path.clone(), line, error })?;
            compare(&head, known).map(|()| true)
        })?;
        if let Some(known) = known.filter(|known| known.seq > head.seq) {
            return Err(AuditError::Truncated { found: head.seq, known: known.seq });
        }
        let mut writer = Writer {
            directory: directory.to_owned(),
            rotate_bytes,
            path,
            file,
            bytes: whole.bytes,
            told: Arc::new(Mutex::new(head.clone())),
            head,
            broken: false,
        };
        if whole.torn > 0 {
            writer.repair(whole.torn)?;
        }
        writer.file.seek(SeekFrom::Start(writer.bytes)).map_err(|error| writer.failed(error))?;
        Ok(writer)
    }

    /// Cuts off a torn last line. Nothing in it was acknowledged.
    fn repair(&mut self, torn: u64) -> Result<(), AuditError> {
        let mut shown = Vec::new();
        let mut read = || {
            self.file.seek(SeekFrom::Start(self.bytes))?;
            (&self.file).take(TORN_SHOWN as u64).read_to_end(&mut shown)?;
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            self.file.sync_all()
        };
        read().map_err(|error| self.failed(error))?;
        let mut event = Event::new(Action::Repair, Outcome::Done);
        event.reason = format!(
            "the last line was torn and cut off: {torn} bytes, beginning with {:?}",
            String::from_utf8_lossy(&shown)
        );
        self.write(vec![event]).pop().unwrap_or(Err(AuditError::Closed)).map(drop)
    }

    fn run(&mut self, mut queue: mpsc::Receiver<Order>) {
        let mut orders = Vec::new();
        loop {
            orders.clear();
            if queue.blocking_recv_many(&mut orders, BATCH) == 0 {
                return;
            }
            let asked: Vec<bool> = orders.iter().map(|order| order.event.is_some()).collect();
            let (events, waiting): (Vec<_>, Vec<_>) =
                orders.drain(..).map(|order| (order.event, order.done)).unzip();
            let mut written = self.write(events.into_iter().flatten().collect()).into_iter();
            for (done, asked) in waiting.into_iter().zip(asked) {
                let result = if asked { written.next() } else { Some(Ok(self.head.seq)) };
                // Who asked may have gone away; the entry stays.
                let _ = done.send(result.unwrap_or(Err(AuditError::Closed)));
            }
        }
    }

    /// Writes entries and waits for the disk. One result for each.
    fn write(&mut self, events: Vec<Event>) -> Vec<Result<u64, AuditError>> {
        if events.is_empty() {
            return Vec::new();
        }
        let mut text = String::new();
        let mut head = self.head.clone();
        let mut results = Vec::with_capacity(events.len());
        for event in events {
            results.push(head.line(event, OffsetDateTime::now_utc()).map(|(line, next)| {
                text.push_str(&line);
                head = next;
                head.seq
            }));
        }
        match self.write_text(&text, &head) {
            Ok(()) => results,
            Err(error) => {
                tracing::error!("{error}");
                results.iter().map(|_| Err(AuditError::Closed)).collect()
            }
        }
    }

    fn write_text(&mut self, text: &str, head: &Head) -> Result<(), AuditError> {
        if self.broken {
            return Err(AuditError::Closed);
        }
        if self.bytes >= self.rotate_bytes {
            self.rotate()?;
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let cut = self.file.set_len(self.bytes);
            let cut = cut.and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)));
            // What the disk holds after a failed sync is not known: no more until a restart reads it.
            self.broken = cut.is_err() || error.kind() != std::io::ErrorKind::StorageFull;
            return Err(self.failed(error));
        }
        self.bytes += text.len() as u64;
        self.head = head.clone();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = head.clone();
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), AuditError> {
        let path = self.directory.join(file_name(self.head.seq + 1));
        self.file = open_file(&path)?;
        self.path = path;
        self.bytes = 0;
        sync_directory(&self.directory)
    }

    fn failed(&self, error: std::io::Error) -> AuditError {
        AuditError::File { path: self.path.clone(), error }
    }
}

/// Whether the entry that is known is the one that was read.
fn compare(head: &Head, known: Option<&Head>) -> Result<(), AuditError> {
    match known {
        Some(known) if known.seq == head.seq && known.hash != head.hash => {
            Err(AuditError::Rewritten(head.seq))
        }
        _ => Ok(()),
    }
}

/// Head after the last line of a file that is complete.
fn last_head(path: &Path) -> Result<Head, AuditError> {
    let mut head = Head::default();
    let mut first = true;
    let whole = read_lines(path, |line, text| {
        let followed = head.follow(text, first);
        first = false;
        followed.map_err(|error| AuditError::Line { path: path.to_owned(), line, error })?;
        Ok(true)
    })?;
    if whole.torn > 0 {
        let line = whole.lines + 1;
        return Err(AuditError::Line { path: path.to_owned(), line, error: LineError::Form });
    }
    Ok(head)
}

fn open_file(path: &Path) -> Result<File, AuditError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| AuditError::File { path: path.to_owned(), error })
}

fn sync_directory(directory: &Path) -> Result<(), AuditError> {
    File::open(directory)
        .and_then(|open| open.sync_all())
        .map_err(|error| AuditError::File { path: directory.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{find, list, verify};

    fn event(subject: &str) -> Event {
        let mut event = Event::new(Action::GetResource, Outcome::Done);
        event.subject = Some(subject.to_owned());
        event.request = Some(format!("id-{subject}"));
        event
    }

    async fn write(directory: &Path, rotate: u64, count: usize) {
        let log = AuditLog::open(directory, rotate, None).unwrap();
        for number in 0..count {
            log.append(event(&number.to_string())).await.unwrap();
        }
        log.close();
        assert!(matches!(log.append(event("late")).await, Err(AuditError::Closed)));
    }

    #[tokio::test]
    async fn who_reads_after_settling_reads_what_was_noted_before() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::open(directory.path(), 1 << 20, None).unwrap();
        for number in 0..200 {
            log.note(event(&number.to_string())).await.unwrap();
            log.settle().await.unwrap();
            assert_eq!(find(directory.path(), &format!("id-{number}"), 1).unwrap().len(), 1);
        }
        log.close();
        assert!(matches!(log.settle().await, Err(AuditError::Closed)));
    }

    #[tokio::test]
    async fn a_log_goes_on_where_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for round in 1..=3 {
            write(path, 1 << 20, 4).await;
            let verified = verify(path).unwrap();
            assert_eq!(
                (verified.entries, verified.first, verified.last),
                (round * 4, 1, round * 4)
            );
            assert_eq!((verified.files, verified.torn), (1, 0));
        }
        let listed = list(path, 3, 2).unwrap();
        assert_eq!(listed.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(list(path, 12, 2).unwrap(), []);
        assert_eq!(find(path, "id-2", 4).unwrap().len(), 3);
        assert_eq!(find(path, "id", 4).unwrap(), []);
    }

    #[tokio::test]
    async fn files_rotate_and_the_chain_goes_through() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, 1000, 20).await;
        write(path, 1000, 20).await;
        let all = files(path).unwrap();
        assert!(all.len() > 3, "{all:?}");
        assert_eq!(verify(path).unwrap().entries, 40);
        assert_eq!(list(path, 30, 100).unwrap().len(), 10);
        // Older files are put away: what is left holds together.
        fs::remove_file(&all[0]).unwrap();
        let verified = verify(path).unwrap();
        assert!(verified.first > 1 && verified.last == 40);
        // One from the middle is missing.
        fs::remove_file(&all[2]).unwrap();
        assert!(matches!(
            verify(path),
            Err(AuditError::Line { line: 1, error: LineError::Chain, .. })
        ));
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_off_and_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, 1 << 20, 3).await;
        let file = files(path).unwrap().remove(0);
        let whole = fs::read(&file).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
        // Wherever the last line was torn: two entries are left, and a third tells of it.
        for length in last + 1..whole.len() {
            fs::write(&file, &whole[..length]).unwrap();
            assert_eq!(verify(path).unwrap().torn, (length - last) as u64);
            AuditLog::open(path, 1 << 20, None).unwrap().close();
            let verified = verify(path).unwrap();
            assert_eq!((verified.entries, verified.torn), (3, 0));
            let repair = list(path, 2, 1).unwrap().remove(0);
            assert_eq!(repair.event.action, Action::Repair);
            assert!(repair.event.reason.contains(&format!("{} bytes", length - last)));
        }
    }

    #[tokio::test]
    async fn a_changed_line_is_found_and_stops_the_broker() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, 1 << 20, 3).await;
        let file = files(path).unwrap().remove(0);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen("\"subject\":\"1\"", "\"subject\":\"7\"", 1)).unwrap();
        let error = verify(path).unwrap_err();
        assert!(
            matches!(error, AuditError::Line { line: 2, error: LineError::Hash, .. }),
            "{error}"
        );
        let error = AuditLog::open(path, 1 << 20, None).err().unwrap();
        assert!(matches!(error, AuditError::Line { line: 2, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_log_that_was_cut_or_written_anew_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, 1 << 20, 5).await;
        let log = AuditLog::open(path, 1 << 20, None).unwrap();
        let known = log.head();
        log.close();
        assert_eq!(known.seq, 5);
        let file = files(path).unwrap().remove(0);
        let text = fs::read_to_string(&file).unwrap();
        let cut: String = text.split_inclusive('\n').take(4).collect();
        fs::write(&file, cut).unwrap();
        let error = AuditLog::open(path, 1 << 20, Some(&known)).err().unwrap();
        assert!(matches!(error, AuditError::Truncated { found: 4, known: 5 }), "{error}");
        // Somebody who can compute hashes goes on from there.
        write(path, 1 << 20, 3).await;
        assert_eq!(verify(path).unwrap().entries, 7);
        let error = AuditLog::open(path, 1 << 20, Some(&known)).err().unwrap();
        assert!(matches!(error, AuditError::Rewritten(5)), "{error}");
        fs::write(&file, text).unwrap();
        AuditLog::open(path, 1 << 20, Some(&known)).unwrap().close();
    }

    #[tokio::test]
    async fn many_write_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(AuditLog::open(directory.path(), 50_000, None).unwrap());
        let tasks: Vec<_> = (0..500)
            .map(|number| {
                let log = log.clone();
                tokio::spawn(async move { log.append(event(&number.to_string())).await.unwrap() })
            })
            .collect();
        let mut numbers = Vec::new();
        for task in tasks {
            numbers.push(task.await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=500).collect::<Vec<_>>());
        log.close();
        assert_eq!(verify(directory.path()).unwrap().entries, 500);
    }
}
