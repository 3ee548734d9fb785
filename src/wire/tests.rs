//! What reflection shows.

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use super::pb;

fn files() -> Vec<FileDescriptorProto> {
    FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap().file
}

#[test]
fn the_descriptor_set_is_complete() {
    let files = files();
    let names: Vec<_> = files.iter().map(FileDescriptorProto::name).collect();
    for file in &files {
        for dependency in &file.dependency {
            assert!(names.contains(&dependency.as_str()), "{dependency} is missing");
        }
    }
    let services: Vec<_> = files.iter().flat_map(|file| &file.service).map(|service| service.name()).collect();
    assert_eq!(services, ["ChangeStreamService", "AdminService"]);
}

#[test]
fn every_element_is_commented_for_reflection() {
    for file in files().iter().filter(|file| file.package() == "walcast.v1") {
        let commented: Vec<&[i32]> = file
            .source_code_info
            .iter()
            .flat_map(|info| &info.location)
            .filter(|location| !location.leading_comments().trim().is_empty())
            .map(|location| location.path.as_slice())
            .collect();
        // Paths are field numbers of FileDescriptorProto: 4 message, 5 enum, 6 service, 12 syntax.
        let mut paths = vec![vec![12]];
        for (at, message) in (0..).zip(&file.message_type) {
            assert!(message.nested_type.is_empty() && message.enum_type.is_empty(), "not walked: {}", message.name());
            paths.push(vec![4, at]);
            paths.extend((0..).zip(&message.field).map(|(field, _)| vec![4, at, 2, field]));
            paths.extend((0..).zip(&message.oneof_decl).map(|(oneof, _)| vec![4, at, 8, oneof]));
        }
        for (at, enumeration) in (0..).zip(&file.enum_type) {
            paths.push(vec![5, at]);
            paths.extend((0..).zip(&enumeration.value).map(|(value, _)| vec![5, at, 2, value]));
        }
        for (at, service) in (0..).zip(&file.service) {
            paths.push(vec![6, at]);
            paths.extend((0..).zip(&service.method).map(|(method, _)| vec![6, at, 2, method]));
        }
        for path in paths {
            assert!(commented.contains(&path.as_slice()), "{}: no comment at {path:?}", file.name());
        }
    }
}
