//! What was looked up last, by the address of the name it was looked up with: a worker uses few
//! clusters at a time, and their names are the same objects until the configuration changes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// A small memory in front of a map by name. It keeps names and values alive: clear it when the map
/// forgets some.
pub(super) struct Recent<V> {
    slots: RefCell<[Slot<V>; SLOTS]>,
}

type Slot<V> = Option<(Arc<str>, Rc<V>)>;

const SLOTS: usize = 16;

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Recent { slots: RefCell::new([const { None }; SLOTS]) }
    }
}

impl<V> Recent<V> {
    /// The value remembered for this very name, else what `find` gives for it.
    pub(super) fn get_or(&self, name: &Arc<str>, find: impl FnOnce() -> Rc<V>) -> Rc<V> {
        let slot = slot_of(name);
        if let Some((known, value)) = &self.slots.borrow()[slot]
            && Arc::ptr_eq(known, name)
        {
            return value.clone();
        }
        let value = find();
        self.slots.borrow_mut()[slot] = Some((name.clone(), value.clone()));
        value
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.slots.borrow_mut().fill_with(|| None);
    }
}

/// The allocator aligns to 16; the bits above tell neighbours apart.
fn slot_of(name: &Arc<str>) -> usize {
    let address = Arc::as_ptr(name).addr();
    (address >> 4 ^ address >> 8) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_not_the_same_and_what_is_cleared_is_gone() {
        let recent = Recent::default();
        let (one, other): (Arc<str>, Arc<str>) = ("name".into(), "name".into());
        assert_eq!(*recent.get_or(&one, || Rc::new(1)), 1);
        assert_eq!(*recent.get_or(&one, || Rc::new(2)), 1);
        assert_eq!(*recent.get_or(&other, || Rc::new(3)), 3);
        let value = recent.get_or(&one, || Rc::new(4));
        recent.clear();
        assert_eq!(Rc::strong_count(&value), 1);
        assert_eq!(*recent.get_or(&one, || Rc::new(5)), 5);
    }
}
