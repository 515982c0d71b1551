package tap

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the name of our nftables table, of the family inet.
const TableName = "auberge"

// maxConnections is how many connections a guest can have open: the kernel
// remembers each, in a table that the host needs too.
const maxConnections = 8192

// Registers of nftables: the first holds the name of an interface, and what is
// compared together with that has to follow it.
const (
	reg        = 1
	regAfterIf = unix.NFT_REG32_04
)

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// guestSet pairs each of our interfaces with the only address that may come
// from it.
func guestSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "guests", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)}
}

// outwardSet holds the interfaces of guests that may go out.
func outwardSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "outward", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// addElements fills the sets.
func addElements(c *nftables.Conn, guests, outward *nftables.Set, members []member) error {
	var g, o []nftables.SetElement
	for _, m := range members {
		var name [unix.IFNAMSIZ]byte
		copy(name[:], m.name)
		a := m.guest.As4()
		g = append(g, nftables.SetElement{Key: append(name[:], a[:]...)})
		if m.out {
			o = append(o, nftables.SetElement{Key: name[:]})
		}
	}
	for set, elements := range map[*nftables.Set][]nftables.SetElement{guests: g, outward: o} {
		if len(elements) == 0 {
			continue
		}
		if err := c.SetAddElements(set, elements); err != nil {
			return err
		}
	}
	return nil
}

// layElements makes the sets of a table that is there follow the members.
func layElements(c *nftables.Conn, members []member) error {
	t := table()
	guests, outward := guestSet(t), outwardSet(t)
	c.FlushSet(guests)
	c.FlushSet(outward)
	if err := addElements(c, guests, outward, members); err != nil {
		return err
	}
	return c.Flush()
}

// layTable puts the whole table there instead of what there may be, in one
// step. Without members there is none.
func layTable(c *nftables.Conn, members []member, connections uint32) error {
	t := table()
	c.AddTable(t) // or there might be nothing to delete
	c.DelTable(t)
	if len(members) == 0 {
		return c.Flush()
	}
	c.AddTable(t)
	guests, outward := guestSet(t), outwardSet(t)
	open := &nftables.Set{Table: t, Name: "connections", KeyType: nftables.TypeIFName,
		KeyByteOrder: binaryutil.NativeEndian, Dynamic: true, Size: 65535}
	for _, s := range []*nftables.Set{guests, outward, open} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	if err := addElements(c, guests, outward, members); err != nil {
		return err
	}
	for _, l := range chains(t, guests, outward, open, connections) {
		c.AddChain(l.chain)
		for _, r := range l.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: l.chain, Exprs: r})
		}
	}
	return c.Flush()
}

type filledChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// chains are the rules. What they accept other tables can still refuse; what
// they drop is gone.
func chains(t *nftables.Table, guests, outward, open *nftables.Set, connections uint32) []filledChain {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, rules ...[]expr.Any) filledChain {
		return filledChain{&nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: prio}, rules}
	}
	filter := nftables.ChainTypeFilter
	return []filledChain{
		// Before anybody can have given a packet another destination.
		chain("guard", filter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
			rule(notFromGuest, accept),
			rule(notIPv4, drop),
			rule(isIPv4, notFrom(guests), drop),
			rule(isIPv4, toItsGateway, echoRequest, accept),
			rule(notUnicast, drop),
			rule(isIPv4, linkLocal, drop),
		),
		// What somebody has redirected to the host all the same.
		chain("input", filter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
			rule(notFromGuest, accept),
			rule(isIPv4, toItsGateway, echoRequest, accept),
			rule(drop),
		),
		// Other users of the host are no more to a guest than other guests; they
		// need not wait to hear that.
		chain("output", filter, nftables.ChainHookOutput, nftables.ChainPriorityFilter,
			rule(toGuest, answer, accept),
			rule(toGuest, reject),
		),
		chain("forward", filter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
			rule(fromGuest, toGuest, drop),
			rule(toGuest, answer, accept),
			rule(toGuest, drop),
			rule(notFromGuest, accept),
			rule(notIn(outward), drop),
			rule(isIPv4, linkLocal, drop),
			rule(beginning, tooMany(open, connections), drop),
		),
		chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
			rule(fromGuest, in(outward), masquerade),
		),
	}
}

func rule(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: data}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func ifIn(s *nftables.Set, invert bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: invert}}
}

func in(s *nftables.Set) []expr.Any    { return ifIn(s, false) }
func notIn(s *nftables.Set) []expr.Any { return ifIn(s, true) }

// notFrom matches what does not come from its interface's guest.
func notFrom(guests *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Payload{DestRegister: regAfterIf, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: reg, SetName: guests.Name, SetID: guests.ID, Invert: true},
	}
}

// tooMany counts the connections of each interface.
func tooMany(open *nftables.Set, limit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Dynset{SrcRegKey: reg, SetName: open.Name, SetID: open.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
			Exprs: []expr.Any{&expr.Connlimit{Count: limit, Flags: connlimitOver}}},
	}
}

// connlimitOver matches when there are more connections than the count.
const connlimitOver = 1

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: native(0)},
	}
}

// fib asks what a destination is to this host, or to the interface of arrival
// alone.
func fib(ofInterface bool, op expr.CmpOp, kind uint32) []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: ofInterface},
		&expr.Cmp{Op: op, Register: reg, Data: native(kind)}}
}

var (
	accept     = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	reject     = []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	masquerade = []expr.Any{&expr.Masq{}}

	fromGuest    = meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, []byte(Prefix))
	notFromGuest = meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, []byte(Prefix))
	toGuest      = meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, []byte(Prefix))
	isIPv4       = meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4})
	notIPv4      = meta(expr.MetaKeyNFPROTO, expr.CmpOpNeq, []byte{unix.NFPROTO_IPV4})

	toItsGateway = fib(true, expr.CmpOpEq, unix.RTN_LOCAL)
	notUnicast   = fib(false, expr.CmpOpNeq, unix.RTN_UNICAST)

	answer    = ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	beginning = ctState(expr.CtStateBitNEW)

	echoRequest = rule(meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{unix.IPPROTO_ICMP}), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{icmpEcho}},
	})
	// linkLocal is 169.254.0.0/16.
	linkLocal = []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: []byte{0, 0, 0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{169, 254, 0, 0}},
	}
)

const icmpEcho = 8

// hasTable says whether our table is there.
func hasTable(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list the tables of nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}
