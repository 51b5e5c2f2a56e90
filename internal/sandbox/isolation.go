package sandbox

// Isolation is the kind of wall around a sandbox. The empty one is a container.
type Isolation string

const (
	// IsolationContainer: namespaces, a user namespace and a system call filter
	// of the host's kernel.
	IsolationContainer Isolation = "container"
	// IsolationGVisor: a kernel in user space between the sandbox and the
	// host's.
	IsolationGVisor Isolation = "gvisor"
)

// ExtensionIsolation is the extension of a create that asks for one.
const ExtensionIsolation = "paddock.isolation"
