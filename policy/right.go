package policy

// A Right is what a caller must have to use a method. Each method on the bus
// has one.
type Right string

const (
	// RightOwn allows a method whose request names an owner: on the caller's
	// own VMs to those who may use VMs, on somebody else's to an administrator.
	RightOwn Right = "own"
	// RightSelf allows a method about the caller's own VMs, whose request
	// names no owner, to those who may use VMs.
	RightSelf Right = "self"
	// RightAny allows a method that tells facts about the host, and nothing
	// about anybody's VMs, to every caller.
	RightAny Right = "any"
	// RightAdmin allows a method to administrators.
	RightAdmin Right = "admin"
	// RightDaemon is for Auberge's own daemons.
	RightDaemon Right = "daemon"
)

// Known says whether r is one of the rights that there are.
func (r Right) Known() bool {
	switch r {
	case RightOwn, RightSelf, RightAny, RightAdmin, RightDaemon:
		return true
	}
	return false
}

// Actions of polkit, as in policy/polkit.
const (
	// ActionUse is to have VMs of one's own.
	ActionUse = "io.github.auberge-vm.use"
	// ActionManageOthers is the administrator's right over everybody's VMs.
	ActionManageOthers = "io.github.auberge-vm.manage-others"
)
