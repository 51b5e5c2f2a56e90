// Package rmtree removes directory trees that somebody else has shaped. Root in
// a sandbox can nest directories hundreds of thousands of levels deep, with
// names relative to open directories that no path limit applies to. os.RemoveAll
// holds a descriptor for each level and builds a path for each error, so such a
// tree would use up the server's descriptors, and would stay. Here both
// descriptors and memory are bounded, whatever the tree is like.
package rmtree
