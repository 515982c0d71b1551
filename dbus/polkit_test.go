package dbus

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	"github.com/auberge-vm/auberge/protos/conciergepb"
)

// A question is what polkit is asked.
type question struct {
	kind, name, action, id string
	flags                  uint32
}

// A standIn is in polkit's place where a test needs answers that come late,
// or not, or change; the real one is asked in test/e2e.
type standIn struct {
	conn      *dbus.Conn
	questions chan question
	cancelled chan string

	mu     sync.Mutex
	decide func(question) (yes, challenge bool)
	held   map[string]chan struct{} // by action: closed when answers may come
	given  map[string]chan struct{} // by id: closed when the question is given up
}

type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type polkitResult struct {
	Yes, Challenge bool
	Details        map[string]string
}

func (s *standIn) CheckAuthorization(subject polkitSubject, action string, _ map[string]string, flags uint32, id string) (polkitResult, *dbus.Error) {
	q := question{kind: subject.Kind, action: action, id: id, flags: flags}
	q.name, _ = subject.Details["name"].Value().(string)
	s.mu.Lock()
	yes, challenge := s.decide(q)
	held := s.held[action]
	given := make(chan struct{})
	s.given[id] = given
	s.mu.Unlock()
	s.questions <- q
	if held != nil {
		select {
		case <-held:
		case <-given:
			return polkitResult{}, dbus.NewError("org.freedesktop.PolicyKit1.Error.Cancelled", nil)
		}
	}
	return polkitResult{yes, challenge, nil}, nil
}

func (s *standIn) CancelCheckAuthorization(id string) *dbus.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.given[id])
	s.cancelled <- id
	return nil
}

// change makes other decisions, and tells of it.
func (s *standIn) change(t *testing.T, decide func(question) (yes, challenge bool)) {
	t.Helper()
	s.mu.Lock()
	s.decide = decide
	s.mu.Unlock()
	if err := s.conn.Emit(polkitPath, polkitInterface+".Changed"); err != nil {
		t.Fatal(err)
	}
}

// hold keeps the answers about an action until the result is closed.
func (s *standIn) hold(action string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := make(chan struct{})
	s.held = map[string]chan struct{}{action: c}
	return c
}

// asked returns the questions so far.
func (s *standIn) asked() (list []question) {
	for {
		select {
		case q := <-s.questions:
			list = append(list, q)
		default:
			return list
		}
	}
}

func newStandIn(t testing.TB, bus *dbustest.Bus, decide func(question) (yes, challenge bool)) *standIn {
	t.Helper()
	s := &standIn{conn: bus.Connect(t), questions: make(chan question, 1000), cancelled: make(chan string, 100), decide: decide, given: map[string]chan struct{}{}}
	if err := s.conn.Export(s, polkitPath, polkitInterface); err != nil {
		t.Fatal(err)
	}
	if reply, err := s.conn.RequestName(polkitName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return s
}

// users lets some connections do some actions.
func users(rights map[string][]string) func(question) (yes, challenge bool) {
	return func(q question) (bool, bool) {
		for _, action := range rights[q.name] {
			if action == q.action {
				return true, false
			}
		}
		return false, false
	}
}

func nameOf(c *dbus.Conn) string { return c.Names()[0] }

// info calls GetVmInfo for an owner and returns the name of the error.
func info(t testing.TB, c *dbus.Conn, owner string) string {
	t.Helper()
	return errorName(callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{OwnerId: owner}, new(conciergepb.GetVmInfoResponse)))
}

func TestPolkitDecides(t *testing.T) {
	bus := dbustest.Lax(t)
	user, stranger := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Bin)
	manager, root := bus.ConnectAs(t, dbustest.Games), bus.ConnectAs(t, dbustest.Root)
	p := newStandIn(t, bus, users(map[string][]string{
		nameOf(user):    {policy.ActionUse},
		nameOf(manager): {policy.ActionManageOthers},
	}))
	subjects := make(chan policy.Subject, 1)
	serve(t, bus, &handler{getVmInfo: echo, stopAllVms: func(_ context.Context, s policy.Subject) error {
		subjects <- s
		return nil
	}}, Options{Polkit: true})
	for _, test := range []struct {
		what   string
		client *dbus.Conn
		owner  string
		want   string
		asked  string
	}{
		{"a user, its own", user, "", "success", policy.ActionUse},
		{"a user, its own again", user, "1", "success", ""},
		{"a user, a label", user, "x", "success", ""},
		{"a user, another's", user, "2", errAccessDenied, policy.ActionManageOthers},
		{"a user, another's again", user, "2", errAccessDenied, policy.ActionManageOthers},
		{"a user, nobody's", user, "4000000000", errAccessDenied, policy.ActionManageOthers},
		{"a stranger, its own", stranger, "", errAccessDenied, policy.ActionUse},
		{"a stranger, its own again", stranger, "", errAccessDenied, ""},
		{"a stranger, another's", stranger, "1", errAccessDenied, policy.ActionManageOthers},
		{"a manager, another's", manager, "1", "success", policy.ActionManageOthers},
		{"a manager, root's", manager, "0", "success", policy.ActionManageOthers},
		{"a manager, nobody's", manager, "4000000000", errAccessDenied, policy.ActionManageOthers},
		{"a manager, its own", manager, "", errAccessDenied, policy.ActionUse},
		{"root, its own", root, "", "success", ""},
		{"root, another's", root, "1", "success", ""},
	} {
		if got := info(t, test.client, test.owner); got != test.want {
			t.Errorf("%s: %s, want %s", test.what, got, test.want)
		}
		questions := p.asked()
		if test.asked == "" && len(questions) == 0 {
			continue
		}
		want := question{"system-bus-name", nameOf(test.client), test.asked, "", 0}
		if len(questions) != 1 || questions[0] != want {
			t.Errorf("%s: polkit was asked %+v, want %+v", test.what, questions, want)
		}
	}
	for _, test := range []struct {
		client    *dbus.Conn
		want      string
		everybody bool
	}{{user, "success", false}, {stranger, errAccessDenied, false}, {manager, errAccessDenied, false}, {root, "success", true}} {
		_, err := invoke(t, test.client, ConciergeInterface, "StopAllVms")
		if got := errorName(err); got != test.want {
			t.Errorf("StopAllVms by %s: %s, want %s", nameOf(test.client), got, test.want)
		} else if err == nil {
			if s := <-subjects; s.Everybody != test.everybody {
				t.Errorf("StopAllVms by %s: %+v", nameOf(test.client), s)
			}
		}
	}
	if _, err := invoke(t, stranger, introspectableName, "Introspect"); err != nil {
		t.Error("a stranger may not look at the interface:", err)
	}
}

// What polkit said of a connection holds for it until polkit says that
// something is different now, or is another process.
func TestPolkitsAnswersAreKeptUntilItChanges(t *testing.T) {
	bus := dbustest.Lax(t)
	c, other := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Daemon)
	all := map[string][]string{nameOf(c): {policy.ActionUse}, nameOf(other): {policy.ActionUse}}
	p := newStandIn(t, bus, users(all))
	serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})
	expect := func(want string, questions int) {
		t.Helper()
		for range 5 {
			if got := info(t, c, ""); got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		}
		if got := p.asked(); len(got) != questions {
			t.Errorf("asked %+v", got)
		}
	}
	expect("success", 1)
	p.change(t, users(nil))
	expect(errAccessDenied, 1)
	// Only polkit's own word counts.
	if err := other.Emit(polkitPath, polkitInterface+".Changed"); err != nil {
		t.Fatal(err)
	}
	if info(t, other, ""); len(p.asked()) != 1 {
		t.Error("another connection shares the answer")
	}
	expect(errAccessDenied, 0)
	if _, err := p.conn.ReleaseName(polkitName); err != nil {
		t.Fatal(err)
	}
	p = newStandIn(t, bus, users(all))
	expect("success", 1)
}

// Calls at once share one question.
func TestOneQuestionForABurst(t *testing.T) {
	bus := dbustest.Lax(t)
	c := bus.ConnectAs(t, dbustest.Daemon)
	p := newStandIn(t, bus, users(map[string][]string{nameOf(c): {policy.ActionUse}}))
	goOn := p.hold(policy.ActionUse)
	serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})
	var calls []*dbus.Call
	for range 50 {
		calls = append(calls, goInfo(c, "vm"))
	}
	first := <-p.questions
	close(goOn)
	for _, call := range calls {
		if <-call.Done; call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	if more := p.asked(); len(more) > 0 {
		t.Errorf("asked %+v and %+v", first, more)
	}
}

// A polkit that does not answer about one caller holds up nobody else.
func TestASlowPolkitDelaysNobodyElse(t *testing.T) {
	bus := dbustest.Lax(t)
	quick, slow := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Bin)
	p := newStandIn(t, bus, users(map[string][]string{nameOf(quick): {policy.ActionUse}, nameOf(slow): {policy.ActionManageOthers}}))
	goOn := p.hold(policy.ActionManageOthers)
	serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})
	done := make(chan string, 1)
	go func() { done <- info(t, slow, "1") }()
	if q := <-p.questions; q.name != nameOf(slow) {
		t.Fatalf("asked %+v", q)
	}
	for range 10 {
		if got := info(t, quick, ""); got != "success" {
			t.Fatal(got)
		}
	}
	select {
	case got := <-done:
		t.Fatal("the slow one was answered:", got)
	default:
	}
	close(goOn)
	if got := <-done; got != "success" {
		t.Error(got)
	}
}

// goInteractive calls GetVmInfo for an owner, and agrees to a dialog. Calls
// of godbus lose the flag, messages do not.
func goInteractive(t *testing.T, c *dbus.Conn, owner string) *dbus.Call {
	t.Helper()
	data, err := proto.Marshal(&conciergepb.GetVmInfoRequest{OwnerId: owner})
	if err != nil {
		t.Fatal(err)
	}
	return c.Send(&dbus.Message{
		Type: dbus.TypeMethodCall, Flags: dbus.FlagAllowInteractiveAuthorization,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(ConciergeName), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(ConciergePath)),
			dbus.FieldInterface: dbus.MakeVariant(ConciergeInterface), dbus.FieldMember: dbus.MakeVariant("GetVmInfo"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(data)),
		},
		Body: []any{data},
	}, make(chan *dbus.Call, 1))
}

func TestDialogs(t *testing.T) {
	bus := dbustest.Lax(t)
	c, leaver := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Daemon)
	p := newStandIn(t, bus, func(q question) (bool, bool) { return q.flags == polkitInteraction, true })
	serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})

	// Without the caller's consent there is none.
	err := callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{OwnerId: "2"}, new(conciergepb.GetVmInfoResponse))
	if errorName(err) != errAccessDenied || !strings.Contains(err.Error(), "password") {
		t.Error(err)
	}
	if q := <-p.questions; q.flags != 0 || q.id != "" {
		t.Errorf("asked %+v", q)
	}
	for _, owner := range []string{"2", "1"} {
		call := <-goInteractive(t, c, owner).Done
		if call.Err != nil {
			t.Fatalf("owner %s: %v", owner, call.Err)
		}
		if q := <-p.questions; owner == "1" { // first without
			if q.flags != 0 {
				t.Errorf("asked %+v first", q)
			}
			if q = <-p.questions; q.flags != polkitInteraction || q.id == "" {
				t.Errorf("asked %+v", q)
			}
		}
	}
	// What a password has allowed holds for that call.
	if got := info(t, c, ""); got != errAccessDenied {
		t.Error("a password given for one call is good for the next:", got)
	}

	// A dialog is closed when the caller has gone.
	hold := p.hold(policy.ActionManageOthers)
	p.asked()
	goInteractive(t, leaver, "2")
	q := <-p.questions
	leaver.Close()
	if id := <-p.cancelled; id != q.id {
		t.Errorf("dialog %q was closed, not %q", id, q.id)
	}

	// A user has only so many at a time.
	var open []*dbus.Call
	for range maxDialogsPerUser {
		open = append(open, goInteractive(t, c, "2"))
		<-p.questions
	}
	if call := <-goInteractive(t, c, "2").Done; errorName(call.Err) != errLimitsExceeded {
		t.Error(call.Err)
	}
	close(hold)
	for _, call := range open {
		if <-call.Done; call.Err != nil {
			t.Error(call.Err)
		}
	}
	if call := <-goInteractive(t, c, "2").Done; call.Err != nil {
		t.Error("places are not given back:", call.Err)
	}
}

func TestWithoutPolkitNobodyIsLetIn(t *testing.T) {
	bus := dbustest.Lax(t)
	c, root := bus.ConnectAs(t, dbustest.Daemon), bus.ConnectAs(t, dbustest.Root)
	serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})
	for _, owner := range []string{"", "2"} {
		err := callProto(t, c, "GetVmInfo", &conciergepb.GetVmInfoRequest{OwnerId: owner}, new(conciergepb.GetVmInfoResponse))
		if errorName(err) != errAccessDenied || !strings.Contains(err.Error(), "polkit") || !strings.Contains(err.Error(), "run vm_concierge with --polkit off") {
			t.Errorf("owner %q: %v", owner, err)
		}
	}
	serveCicerone(t, bus, newCiceroneHandler(), Options{Polkit: true})
	err := callCicerone(t, c, "IsContainerRunning", &ciceronepb.IsContainerRunningRequest{}, new(ciceronepb.IsContainerRunningResponse))
	if errorName(err) != errAccessDenied || !strings.Contains(err.Error(), "run vm_cicerone with --polkit off") {
		t.Error("vm_cicerone:", err)
	}
	// VMs must be stopped when polkit is down already.
	if got := info(t, root, "1"); got != "success" {
		t.Error("root is not let in:", got)
	}
	newStandIn(t, bus, users(map[string][]string{nameOf(c): {policy.ActionUse}}))
	if got := info(t, c, ""); got != "success" {
		t.Error("polkit is there now:", got)
	}
}

// Somebody who has polkit busy waits for it alone: another user's question is
// among the next.
func TestQuestionsAreAskedInTurn(t *testing.T) {
	bus := dbustest.Lax(t)
	busy, other := bus.ConnectAs(t, dbustest.Bin), bus.ConnectAs(t, dbustest.Daemon)
	p := newStandIn(t, bus, users(map[string][]string{nameOf(other): {policy.ActionUse}}))
	goOn := p.hold(policy.ActionManageOthers)
	s, _ := serve(t, bus, &handler{getVmInfo: echo}, Options{Polkit: true})
	request, err := proto.Marshal(&conciergepb.GetVmInfoRequest{OwnerId: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var calls []*dbus.Call
	for range 60 {
		calls = append(calls, busy.Object(ConciergeName, ConciergePath).Go(ConciergeInterface+".GetVmInfo", 0, make(chan *dbus.Call, 1), request))
	}
	for range maxUserQuestions {
		<-p.questions
	}
	if got := info(t, other, ""); got != "success" {
		t.Error(got)
	}
	if q := p.asked(); len(q) != 1 || q[0].name != nameOf(other) {
		t.Errorf("asked %+v, and %d of the busy one's", q, maxUserQuestions)
	}
	close(goOn)
	for _, call := range calls {
		if <-call.Done; errorName(call.Err) != errAccessDenied {
			t.Error(call.Err)
		}
	}
	a := s.current.Load().polkit
	a.mu.Lock()
	defer a.mu.Unlock()
	a.questions.mu.Lock()
	defer a.questions.mu.Unlock()
	if len(a.questions.lines) > 0 || len(a.dialogs) > 0 || len(a.questions.slots) > 0 {
		t.Errorf("something is left: %v %v", a.questions.lines, a.dialogs)
	}
}
