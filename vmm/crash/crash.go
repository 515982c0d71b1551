// Package crash names the moments at which a daemon can be killed to the worst
// effect: between the steps that make, record and remove a VM, settings and
// disks. Built with the tag crashpoints, a program dies at the point that its
// environment names; built without, the points are nothing.
package crash

// Env names the point at which the program dies: "record-written", or
// "record-written#2" for the second time that it is reached.
const Env = "AUBERGE_CRASH"

// A Point is one such moment.
type Point string

// Points in the order in which a VM's life reaches them, then those of
// settings and disks.
const (
	DirMade          Point = "dir-made"          // the VM's directory exists
	DirShared        Point = "dir-shared"        // and the VMs' user may enter it
	RecordWritten    Point = "record-written"    // a record has its text, under a temporary name
	RecordStored     Point = "record-stored"     // and its own name
	StartAnnounced   Point = "start-announced"   // VmStartingUpSignal is out
	BeforeSupervisor Point = "before-supervisor" // the control socket listens, nobody serves it
	SupervisorForked Point = "supervisor-forked" // somebody does, without a VM
	LaunchSent       Point = "launch-sent"       // and is being given one
	Launched         Point = "launched"          // the hypervisor runs
	GuestReady       Point = "guest-ready"       // VmReady came
	GuestConfigured  Point = "guest-configured"  // the guest is as asked for
	Started          Point = "started"           // VmStartedSignal is out
	StopAnnounced    Point = "stop-announced"    // VmStoppingSignal is out
	PoweredOff       Point = "powered-off"       // the guest has been told
	BeforeRemoval    Point = "before-removal"    // no process is left
	DirRemoved       Point = "dir-removed"       // nor the directory
	StoppedAnnounced Point = "stopped-announced" // VmStoppedSignal is out
	RecordRemoved    Point = "record-removed"    // nothing is left
	SettingsDirMade  Point = "settings-dir-made"
	SettingsWritten  Point = "settings-written"
	SettingsStored   Point = "settings-stored"
	StoreMade        Point = "store-made"  // an owner's disk store exists
	DiskMade         Point = "disk-made"   // an image is whole and has no name
	DiskLinked       Point = "disk-linked" // it has one
	DiskRemoved      Point = "disk-removed"
)

// All lists the points.
var All = []Point{
	DirMade, DirShared, RecordWritten, RecordStored, StartAnnounced, BeforeSupervisor, SupervisorForked, LaunchSent,
	Launched, GuestReady, GuestConfigured, Started, StopAnnounced, PoweredOff, BeforeRemoval, DirRemoved, StoppedAnnounced,
	RecordRemoved, SettingsDirMade, SettingsWritten, SettingsStored, StoreMade, DiskMade, DiskLinked, DiskRemoved,
}
