//! What `milepost doctor` asks of a file system, inside a scratch directory.

use super::{direct, errno::reading, write::OpenFile};
use crate::{
    buffer::{Buffer, PAGE_BYTES},
    error::Result,
    store::probe::{Finding, Outcome},
};
use rustix::{
    fd::OwnedFd,
    fs::{
        AtFlags, CWD, Mode, OFlags, StatFs, fcntl_setfl, fstatfs, linkat, openat, statat, syncfs,
        unlinkat,
    },
    io::Errno,
};
use std::path::Path;

/// File systems by their magic number (statfs(2)); others are shown as the number.
const FILE_SYSTEMS: &[(u64, &str)] = &[
    (0xef53, "ext2/ext3/ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x6573_5546, "fuse"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x00c3_6400, "ceph"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x4d44, "vfat"),
    (0x2011_bab0, "exfat"),
    (0x0102_1997, "9p"),
];

/// Finds out what the file system of the directory `path` can do.
pub(super) fn inspect(path: &Path) -> Result<Vec<Finding>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, path, flags, Mode::empty()).map_err(reading)?;
    let stat = fstatfs(&dir).map_err(reading)?;
    Ok(vec![
        Finding::new("file system", Outcome::Fact, name(&stat)),
        Finding::new("free space", Outcome::Fact, free(&stat)),
        case_sensitive(&dir),
        direct_io(path),
        hard_link(&dir),
        Finding::tried("syncfs", syncfs(&dir), ""),
    ])
}

fn name(stat: &StatFs) -> String {
    let magic = stat.f_type.cast_unsigned() & 0xffff_ffff; // signed on some targets, but 32 bits
    FILE_SYSTEMS
        .iter()
        .find(|(known, _)| *known == magic)
        .map_or_else(|| format!("0x{magic:x}"), |(_, name)| (*name).to_owned())
}

fn free(stat: &StatFs) -> String {
    let block = u64::try_from(stat.f_bsize).unwrap_or(0);
    let gib = |blocks: u64| blocks.saturating_mul(block) >> 30;
    format!("{} of {} GiB", gib(stat.f_bavail), gib(stat.f_blocks))
}

fn touch(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::from_raw_mode(0o666))
}

fn case_sensitive(dir: &OwnedFd) -> Finding {
    const NAME: &str = "case-sensitive names";
    match touch(dir, "case").and_then(|_| statat(dir, "CASE", AtFlags::empty())) {
        Err(Errno::NOENT) => Finding::new(NAME, Outcome::Yes, ""),
        Ok(_) => Finding::new(NAME, Outcome::No, "names that differ only in case are one name"),
        Err(errno) => Finding::new(NAME, Outcome::No, errno.to_string()),
    }
}

/// Writes a page directly and reads it back directly.
fn direct_io(path: &Path) -> Finding {
    const NAME: &str = "direct I/O";
    let path = path.join("direct");
    let trial = || -> Result<String, String> {
        let file = OpenFile::create(path.clone(), 1 << 20).map_err(|error| error.to_string())?;
        if !file.is_direct() {
            return Err("O_DIRECT is refused".to_owned());
        }
        let mut page = Buffer::zeroed(PAGE_BYTES);
        page.fill(7);
        file.write_at(0, &page).map_err(|error| error.to_string())?;
        if !file.is_direct() {
            return Err("a direct write is refused".to_owned());
        }
        let file = super::read::open(&path).map_err(|error| error.to_string())?;
        let unit = direct::unit(&file).ok_or("STATX_DIOALIGN says no")?;
        fcntl_setfl(&file, OFlags::DIRECT).map_err(|errno| errno.to_string())?;
        page.fill(0);
        let n = rustix::io::pread(&file, &mut page[..], 0).map_err(|errno| errno.to_string())?;
        if n != PAGE_BYTES || page.iter().any(|byte| *byte != 7) {
            return Err("a direct read returned other bytes".to_owned());
        }
        Ok(format!("aligned to {unit} bytes"))
    };
    match trial() {
        Ok(detail) => Finding::new(NAME, Outcome::Yes, detail),
        Err(why) => Finding::new(NAME, Outcome::No, why),
    }
}

fn hard_link(dir: &OwnedFd) -> Finding {
    let result = touch(dir, "link-a")
        .and_then(|_| linkat(dir, "link-a", dir, "link-b", AtFlags::empty()))
        .and_then(|()| unlinkat(dir, "link-b", AtFlags::empty()));
    Finding::tried("hard link", result, "")
}
