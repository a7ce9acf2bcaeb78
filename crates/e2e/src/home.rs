//! The directory of one server, as this process sees it and as the server itself sees it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;

use crate::{owner::Owner, server::Launch};

/// A directory that is removed when dropped, or by the reaper when its owner dies first.
#[derive(Debug)]
pub(crate) struct Home {
    /// The root the server is confined to; `None` for the machine's own.
    chroot: Option<PathBuf>,
    inside: PathBuf,
    host: PathBuf,
}

impl Home {
    /// Creates a directory for one server, inside of `chroot` when there is one.
    pub(crate) fn create(kind: &str, chroot: Option<&Path>) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let owner = Owner::get()?;
        let name = format!("{kind}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (parent, inside) = match chroot {
            // Short, because a socket's path must not be longer than 107 bytes.
            Some(root) => {
                let parent = Path::new("/srv").join(owner.token());
                (root.join("srv").join(owner.token()), parent.join(&name))
            }
            None => (owner.root().to_owned(), owner.root().join(&name)),
        };
        owner.create_dir(&parent)?;
        let host = parent.join(&name);
        fs::create_dir(&host).with_context(|| format!("could not create {}", host.display()))?;
        Ok(Self {
            chroot: chroot.map(Path::to_owned),
            inside,
            host,
        })
    }

    /// Whether the server lives below a root of its own.
    pub(crate) fn is_chroot(&self) -> bool {
        self.chroot.is_some()
    }

    /// A path below the directory, as this process sees it.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.host.join(name)
    }

    /// A path below the directory, as the server sees it.
    pub(crate) fn inside(&self, name: &str) -> String {
        self.inside.join(name).display().to_string()
    }

    /// The directory as the server sees it.
    pub(crate) fn path_inside(&self) -> String {
        self.inside.display().to_string()
    }

    /// Writes files the server is to read, such as certificates.
    pub(crate) fn write(&self, files: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
        for (name, content) in files {
            let path = self.host(name);
            fs::write(&path, content)
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        Ok(())
    }

    /// A command line that runs `program` where the server lives.
    pub(crate) fn launch(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = String>,
        env: Vec<(String, String)>,
    ) -> Launch {
        let mut own: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let program = match &self.chroot {
            Some(root) => {
                own.splice(0..0, [root.clone().into(), program.into()]);
                PathBuf::from("chroot")
            }
            None => program.to_owned(),
        };
        Launch {
            program,
            args: own,
            env,
            dir: self.host.clone(),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the reaper has the last word.
        drop(fs::remove_dir_all(&self.host));
    }
}
