// Package tap makes networks of virtual machines: for each a TAP interface on
// the host with an address of the VM's own network, and the rules of the
// firewall by which its guest reaches the world and nothing of the host.
//
// It needs CAP_NET_ADMIN and /dev/net/tun, and keeps nothing: an interface is
// there for as long as somebody has its descriptor, says in its alias whose it
// is, and the rules follow from the interfaces there are. So any process of
// this package can go on where another one was killed.
//
// The rules are the nftables table "inet auberge", which is there for as long
// as there are interfaces:
//
//   - a guest sends from its own address only, and IPv4 only;
//   - it reaches no address of the host but by echo requests its gateway's,
//     no other guest, and no link-local address, where clouds have their
//     metadata;
//   - what it opens to the rest of the world leaves with the host's address,
//     and answers come back; nothing else is forwarded to it, and processes of
//     the host do not reach it;
//   - a restricted guest gets nowhere.
//
// The package knows neither the bus nor VMs; the privileged helper offers it
// to the service that does.
package tap
