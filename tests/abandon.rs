//! What [`walsh::io::abandon`] removes: a test alone in its process, since it is of all files that the process writes.

use walsh::Error;
use walsh::io::{Dtype, Item, ItemContent, Metadata, Writer, abandon};

#[test]
fn every_half_written_file_goes_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let items = |name: &str| vec![Item { name: name.into(), shape: vec![2], content: ItemContent::Plain(Dtype::F32) }];
    let texts = Metadata::Texts(Vec::new());
    let count = || std::fs::read_dir(dir.path()).unwrap().count();
    // The former files, and what would be the names of new ones without the process in them.
    let others = ["a", "b", "a.partial", "b.partial"];
    for name in others {
        std::fs::write(path(name), name).unwrap();
    }
    let written = Writer::write(&path("a"), None, items("x"), &texts, |outer| {
        outer.plain(0, 0, &[1; 8])?;
        Writer::write(&path("b"), None, items("y"), &texts, |inner| {
            inner.plain(0, 0, &[2; 4])?;
            assert_eq!(count(), others.len() + 2);
            drop(abandon());
            assert_eq!(count(), others.len());
            // What is begun after that is another matter.
            Writer::write(&path("c"), None, items("z"), &texts, |third| third.plain(0, 0, &[3; 8]))?;
            Err::<(), _>(Error::Interrupted("enough".into()))
        })
    });
    assert_eq!(written.unwrap_err().to_string(), "interrupted: enough");
    assert_eq!(count(), others.len() + 1);
    for name in others {
        assert_eq!(std::fs::read(path(name)).unwrap(), name.as_bytes());
    }
    // Nor is it listed any more.
    drop(abandon());
    assert!(path("c").exists());
}
