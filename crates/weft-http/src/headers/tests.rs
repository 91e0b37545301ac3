use super::{HeaderList, Known};

fn list(lines: &[(&str, &str)]) -> HeaderList {
    lines.iter().copied().collect()
}

fn check(list: &HeaderList, expect: &[(&str, &str)]) {
    let got: Vec<(String, String)> = list
        .iter()
        .map(|header| {
            (
                String::from_utf8_lossy(header.name).into_owned(),
                String::from_utf8_lossy(header.value).into_owned(),
            )
        })
        .collect();
    let expect: Vec<(String, String)> =
        expect.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    assert_eq!(got, expect);
    assert_eq!(list.len(), expect.len());
}

#[test]
fn order_spelling_and_duplicates_stay() {
    let lines = [("X-CustomID", "1"), ("SOAPAction", "a"), ("x-customid", "2")];
    let list = list(&lines);
    check(&list, &lines);
    assert_eq!(list.get("x-CUSTOMid"), Some(&b"1"[..]));
    assert_eq!(list.get_all("x-customid").collect::<Vec<_>>(), [b"1", b"2"]);
}

#[test]
fn set_keeps_place_and_spelling_and_drops_the_rest() {
    let mut list = list(&[("HOST", "a"), ("x", "1"), ("Host", "b")]);
    list.set("host", "c");
    check(&list, &[("HOST", "c"), ("x", "1")]);
    list.set("X", "2");
    list.set("new", "3");
    check(&list, &[("HOST", "c"), ("x", "2"), ("new", "3")]);
}

#[test]
fn remove_forgets_the_index_and_append_finds_it_again() {
    let mut list = list(&[("Host", "a"), ("b", "1"), ("host", "c")]);
    assert_eq!(list.remove("host"), 2);
    assert_eq!(list.get_known(Known::Host), None);
    assert_eq!(list.remove("host"), 0);
    list.append("Host", "d");
    assert_eq!(list.get_known(Known::Host), Some(&b"d"[..]));
    check(&list, &[("b", "1"), ("Host", "d")]);
}

#[test]
fn retain_moves_the_index_to_the_next_line() {
    let mut list = list(&[("Te", "gzip"), ("te", "trailers")]);
    list.retain(|header| header.value != b"gzip");
    assert_eq!(list.get_known(Known::Te), Some(&b"trailers"[..]));
}

#[test]
fn nothing_appended_can_split_a_message() {
    let mut list = HeaderList::new();
    list.append("a\r\nb", "1\r\nEvil: 2\0");
    list.append("ok", "  padded\t");
    check(&list, &[("a--b", "1  Evil: 2"), ("ok", "padded")]);
    list.append("transfer encoding", "chunked");
    assert_eq!(list.get_known(Known::TransferEncoding), Some(&b"chunked"[..]));
    list.set("ok", "x\ny");
    assert_eq!(list.get("ok"), Some(&b"x y"[..]));
}

#[test]
fn lower_casing_touches_names_only() {
    let mut list = list(&[("Content-Type", "Text/Plain"), ("x-a", "B"), ("X-B", "C")]);
    list.lowercase_names();
    check(&list, &[("content-type", "Text/Plain"), ("x-a", "B"), ("x-b", "C")]);
}

#[test]
fn known_names_are_found_far_down_a_long_list() {
    let mut list = HeaderList::new();
    for index in 0..300 {
        list.append(format!("x-{index}"), "v");
    }
    list.append("Host", "far");
    assert_eq!(list.get("host"), Some(&b"far"[..]));
    list.set("host", "near");
    assert_eq!(list.get_known(Known::Host), Some(&b"near"[..]));
    assert_eq!(list.remove("host"), 1);
    assert_eq!(list.get("host"), None);
}
