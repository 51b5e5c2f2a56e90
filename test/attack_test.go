package test

import (
	_ "embed"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

//go:embed testdata/attacks.py
var attacksScript string

var quiet = log.New(io.Discard, "", 0)

// attack is a way out, a function of testdata/attacks.py.
type attack struct {
	name string
	// works says that it gets through from a sandbox without a policy, which
	// shows that the attack is one; of the others something else than a policy
	// is the hindrance.
	works bool
}

func named(works bool, names string) []attack {
	var list []attack
	for n := range strings.FieldsSeq(names) {
		list = append(list, attack{n, works})
	}
	return list
}

// attacks are tried under a policy that denies all but allowed.example,
// *.wild.example, and some requests to ruled.example.
var attacks = append(named(true, `
	ip_tcp ip_tcp_other_port ip_udp ip_mapped ip_of_allowed_unasked ip_neighbour_of_allowed
	dns_other_udp dns_other_tcp dns_other_port dns_over_tls dns_over_https dns_over_quic
	dns_allowed_server_as_resolver dns_allowed_server_tcp dns_allowed_server_tls
	dns_tunnel_label dns_tunnel_txt dns_tunnel_tcp dns_tunnel_null dns_any dns_private_type dns_service_binding
	dns_many_labels dns_long_name dns_many_names dns_suffix_trick dns_lookalike dns_beneath_exact dns_reverse dns_alias_to_allowed
	rebind_mapped rebind_nat64
	sni_allowed_at_evil sni_evil_at_allowed sni_missing sni_one_byte_segments sni_small_records
	sni_encrypted_hello sni_other_port sni_other_allowed_name opaque_on_443 opaque_on_80
	host_evil host_evil_other_port host_missing host_http09 host_two host_two_reversed host_absolute_target host_absolute_upper
	host_userinfo host_bare_lf host_folded host_space_before_colon host_leading_lines host_leading_space host_odd_method
	host_lower_version host_other_port host_ip connect_relay connect_relay_allowed_host
	host_leading_line_feeds host_all_line_feeds host_bare_cr host_nul host_value_folded host_list host_port_zero host_port_signed
	host_two_spaces host_odd_version host_high_byte host_absolute_tls host_empty_name host_no_colon
	sni_nul sni_space sni_address hello_empty_record hello_long_record hello_other_message hello_long_message hello_other_record
	keepalive_second_host pipelined_second_host upgrade_then_host
	smuggle_both_lengths smuggle_two_lengths smuggle_list_of_lengths smuggle_signed_length smuggle_odd_encoding
	smuggle_encoding_tab smuggle_bad_chunk smuggle_chunk_end smuggle_after_body http2_prior_knowledge
	smuggle_same_lengths smuggle_no_length smuggle_minus_length smuggle_two_encodings smuggle_folded_encoding smuggle_old_version
	smuggle_minus_chunk smuggle_huge_chunk smuggle_chunk_line_feed smuggle_chunk_cr smuggle_chunk_extension
	smuggle_bad_trailer smuggle_trailer_line_feed
	rule_method rule_method_lower rule_path rule_path_dots rule_path_encoded_dots rule_path_encoded_slash rule_path_encoded_twice
	rule_path_backslash rule_path_parameter rule_path_empty_segment rule_path_nul rule_path_bad_escape rule_path_upper
	rule_path_in_query rule_path_in_fragment rule_path_relative rule_absolute rule_absolute_clear rule_absolute_evil
	rule_host_evil rule_host_other_port rule_host_ip rule_host_userinfo rule_host_missing rule_host_two rule_host_bare_lf rule_host_bare_cr
	rule_host_folded rule_host_value_folded rule_host_space rule_control_character rule_leading_lines rule_leading_line_feed
	rule_leading_space rule_line_feeds rule_two_spaces rule_odd_version rule_no_version rule_asterisk rule_long_head rule_connect
	rule_pipelined rule_upgrade_then rule_upgrade_h2c_then rule_preface rule_no_http
	rule_both_lengths rule_two_lengths rule_same_lengths rule_list_of_lengths rule_signed_length rule_minus_length rule_no_length
	rule_odd_encoding rule_two_encodings rule_folded_encoding rule_encoding_in_old rule_bad_chunk rule_minus_chunk rule_huge_chunk
	rule_chunk_end rule_chunk_line_feed rule_chunk_cr rule_trailer_length rule_trailer_folded rule_trailer_line_feed
	rule_in_clear rule_not_http rule_udp rule_encrypted_hello
	h2_method h2_path h2_path_dots h2_path_encoded_slash h2_path_parameter h2_authority_evil h2_authority_port
	h2_host_evil h2_host_only h2_second_stream
	quic_allowed quic_evil fragments fragments_allowed_443 metadata_host_header
`), named(false, `
	dns_axfr dns_chaos dns_two_questions
	rebind_private rebind_metadata rebind_loopback_gateway rebind_host rebind_by_alias
	sni_two_names sni_upper_suffix sni_empty upgrade_h2c
	h2_path_absolute h2_path_relative h2_authority_userinfo h2_path_two h2_path_late h2_host_none h2_line_break h2_line_break_in_path h2_line_break_in_method
	h2_upper_name h2_encoding h2_connection h2_short_length h2_trailer_pseudo h2_connect h2_connect_extended h2_push
	icmp_ping_socket icmp_raw tcp_fast_open ip_in_ip gre esp sctp udplite
	spoof_source spoof_transparent spoof_packet_socket arp_spoof add_address add_route set_mac add_neighbour new_link set_mark
	nft_flush new_user_namespace
	ipv6_link_local ipv6_multicast ipv6_all_routers ipv6_nat64 ipv6_6to4 ipv6_teredo ipv6_compatible ipv6_site_local ipv6_on_link
	multicast broadcast other_sandbox host_gateway host_outside_address host_loopback
	metadata metadata_decimal metadata_hex metadata_octal metadata_short metadata_alibaba private_range
`)...)

// attacks6 are tried over IPv6.
var attacks6 = append(named(true, `
	ip_tcp ip_tcp_other_port ip_udp ip_of_allowed_unasked ip_neighbour_of_allowed
	dns_other_udp dns_other_tcp dns_other_port dns_over_tls dns_over_https dns_over_quic
	dns_allowed_server_as_resolver dns_allowed_server_tcp dns_allowed_server_tls
	sni_allowed_at_evil sni_evil_at_allowed sni_missing sni_one_byte_segments sni_small_records
	sni_encrypted_hello sni_other_port sni_other_allowed_name opaque_on_443 opaque_on_80
	host_evil host_evil_other_port host_missing host_two host_absolute_target host_other_port host_ip
	connect_relay connect_relay_allowed_host keepalive_second_host pipelined_second_host
	smuggle_both_lengths smuggle_two_lengths smuggle_bad_chunk http2_prior_knowledge
	quic_allowed quic_evil fragments fragments_allowed_443
	ipv6_flow_label
	rule_method rule_path rule_host_evil rule_host_two rule_both_lengths rule_bad_chunk rule_pipelined rule_in_clear rule_udp
	h2_path h2_authority_evil
`), named(false, `
	ipv6_hop_options ipv6_destination_options
	rebind_private rebind_metadata rebind_loopback_gateway rebind_host rebind_by_alias
	sni_two_names sni_upper_suffix tcp_fast_open sctp udplite spoof_source
	ipv6_routing_header ipv6_segment_routing ipv6_advertisement ipv6_ping ipv6_tunnels ipv6_add_address ipv6_add_route
	other_sandbox host_gateway host_outside_address metadata private_range
`)...)

// permitted is what the same policy lets through.
var permitted = strings.Fields(`
	good_http good_body good_chunks good_keepalive good_tls good_opaque good_line good_udp good_server_first good_wild
	good_ruled good_ruled_body good_ruled_h2 explained`)

// denyBut is a policy that allows these targets only.
func denyBut(targets ...string) map[string]any {
	rules := []any{}
	for _, target := range targets {
		rules = append(rules, map[string]any{"action": "allow", "target": target})
	}
	return map[string]any{"defaultAction": "deny", "egress": rules}
}

// attacked is the policy against which attacks are tried.
func attacked() map[string]any {
	p := denyBut("allowed.example", "*.wild.example")
	p["egress"] = append(p["egress"].([]any), map[string]any{"action": "allow", "target": "ruled.example",
		"http": map[string]any{"methods": []string{"GET", "PUT"}, "paths": []string{"/ok/*"}}})
	return p
}

// fort is a server with sandboxes to attack from.
type fort struct {
	*harness.Server
	w   *world
	env map[string]string
}

// over6 is the fort with attacks over IPv6.
func (f *fort) over6() *fort {
	six := *f
	six.env = maps.Clone(f.env)
	six.env["FAMILY"] = "6"
	return &six
}

// policed makes a sandbox with a policy, or without for nil, that has the
// attacks.
func (f *fort) policed(t *testing.T, p map[string]any) string {
	t.Helper()
	body := map[string]any{
		"image": map[string]any{"uri": starterImage}, "entrypoint": forever, "timeout": 900, "env": f.env,
		"resourceLimits": map[string]string{"cpu": "1", "memory": "512Mi"},
	}
	if p != nil {
		body["networkPolicy"] = p
	}
	var sb client.Sandbox
	r := f.Do(t, http.MethodPost, "/v1/sandboxes", body, "Prefer", "wait=30")
	if r.Status != http.StatusAccepted && r.Status != http.StatusCreated && r.Status != http.StatusOK {
		t.Fatalf("creating a sandbox: %d %s", r.Status, r.Body)
	}
	r.JSON(t, &sb)
	f.Forget(t, sb.ID)
	f.State(t, sb.ID, client.StateRunning)
	f.Must(t, sb.ID, "cat > /attacks.py <<'END'\n"+attacksScript+"\nEND")
	return sb.ID
}

// try runs an attack and returns what it says, and whether the witness saw its
// token.
func (f *fort) try(t *testing.T, id, name string) (said string, seen bool) {
	t.Helper()
	token := fmt.Sprintf("tok%dz", time.Now().UnixNano())
	since := f.w.now()
	out, errOut, _ := f.Run(t, id, client.Command{Argv: []string{"python3", "/attacks.py", name, token}, Env: f.env})
	said = strings.TrimSpace(out + errOut)
	return said, f.w.saw(t, token, since)
}

func newFort(t *testing.T) *fort {
	t.Helper()
	harness.Binary(t)
	archive := harness.StarterImage(t)
	f := &fort{w: newWorld(t), env: map[string]string{}}
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, f.w.root, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", root) // what the server trusts
	f.Server = harness.New(t, map[string]string{"network.dns_upstreams": "203.0.113.53", "pool.size": "2"})
	if err := f.ImportFile(t.Context(), archive, starterImage); err != nil {
		t.Fatal(err)
	}
	api, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	gateway, proxy := listenerOfGateway(t)
	f.w.mu.Lock()
	f.w.gateway, f.w.gateway6 = gateway, addressOfGateway6(t)
	f.w.mu.Unlock()
	f.env["API"], f.env["PROXY"] = api.Port(), strconv.Itoa(int(proxy))
	return f
}

// listenerOfGateway finds where the server listens for sandboxes, beside DNS.
func listenerOfGateway(t *testing.T) (netip.Addr, uint16) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		fields := strings.Fields(l)
		if len(fields) < 4 || fields[3] != "0A" {
			continue
		}
		host, port, _ := strings.Cut(fields[1], ":")
		a, _ := strconv.ParseUint(host, 16, 32)
		p, _ := strconv.ParseUint(port, 16, 16)
		addr := netip.AddrFrom4([4]byte{byte(a), byte(a >> 8), byte(a >> 16), byte(a >> 24)})
		if addr.As4()[0] == 10 && p != 53 {
			return addr, uint16(p)
		}
	}
	t.Fatal("the server does not listen for sandboxes under a policy")
	return netip.Addr{}, 0
}

// addressOfGateway6 finds the server's address for sandboxes on the loopback
// interface.
func addressOfGateway6(t *testing.T) netip.Addr {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if addr, _ := netip.AddrFromSlice(a.IP); addr.IsPrivate() {
			return addr
		}
	}
	t.Fatal("the server has no IPv6 address for sandboxes")
	return netip.Addr{}
}

func TestAttacks(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	f := newFort(t)
	other := f.policed(t, nil)
	for name, family := range map[string]string{"OTHER": "socket.AF_INET", "OTHER6": "socket.AF_INET6"} {
		f.env[name] = f.Must(t, other, "python3 -c 'import socket; s=socket.socket("+family+", socket.SOCK_DGRAM); "+
			"s.connect((\"203.0.113.66\" if s.family == socket.AF_INET else \"2001:db8:113::66\", 9)); print(s.getsockname()[0])'")
	}
	open := f.policed(t, nil)
	id := f.policed(t, attacked())

	if len(attacks) < 200 {
		t.Errorf("%d attacks", len(attacks))
	}
	t.Run("IPv4", func(t *testing.T) { f.campaign(t, id, open, attacks) })
	t.Run("IPv6", func(t *testing.T) { f.over6().campaign(t, id, open, attacks6) })
	t.Run("kill_everything", func(t *testing.T) {
		victim := f.policed(t, denyBut("allowed.example"))
		// It ends in the middle of the command, which is an error of that.
		_, err := f.Client.Run(t.Context(), victim, client.Command{Argv: []string{"python3", "/attacks.py", "kill_everything", "tokkill"}},
			client.Output{Stdout: io.Discard, Stderr: io.Discard})
		if f.w.saw(t, "tokkill", 0) {
			t.Errorf("got through; the command ended with %v", err)
		}
	})
	t.Run("learned_by_another", func(t *testing.T) {
		// Its neighbour has looked the name up just now.
		fresh := f.policed(t, denyBut("allowed.example"))
		f.try(t, id, "good_http")
		out, _, _ := f.Shell(t, fresh, `python3 -c 'import socket; socket.create_connection(("203.0.113.10", 80), 2); print("OPEN")'`)
		if strings.Contains(out, "OPEN") {
			t.Error("an address that another sandbox learned is open")
		}
	})
	t.Run("exhaust_tracking", func(t *testing.T) {
		f.try(t, id, "exhaust_tracking")
		if said, _ := f.try(t, f.policed(t, denyBut("allowed.example")), "good_http"); !strings.HasPrefix(said, "OPEN") {
			t.Errorf("another sandbox has no connections left: %q", said)
		}
	})
	t.Run("allow_all_but", func(t *testing.T) { testAllowAllBut(t, f) })
	t.Run("allow_all_but_IPv6", func(t *testing.T) { testAllowAllBut(t, f.over6()) })
	t.Run("policy_change_cuts", func(t *testing.T) { testPolicyChangeCuts(t, f) })
	t.Run("policy_change_cuts_IPv6", func(t *testing.T) { testPolicyChangeCuts(t, f.over6()) })
	t.Run("denials_are_told", func(t *testing.T) { testDenialsAreTold(t, f) })
	t.Run("restart_keeps_policy", func(t *testing.T) { testRestartKeepsPolicy(t, f) })
}

// campaign tries attacks in a sandbox whose policy forbids them, what the policy
// permits, and the attacks again in a sandbox without a policy.
func (f *fort) campaign(t *testing.T, policed, open string, attacks []attack) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			said, seen := f.try(t, policed, a.name)
			if seen || !strings.HasPrefix(said, "BLOCKED") {
				t.Errorf("got through: the witness saw it: %v; it says %q", seen, said)
			}
		})
	}
	for _, name := range permitted {
		t.Run(name, func(t *testing.T) {
			if said, _ := f.try(t, policed, name); !strings.HasPrefix(said, "OPEN") {
				t.Errorf("does not work: %q", said)
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		// Several at a time: most of them wait for what does not come.
		left := slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return !a.works })
		var wg sync.WaitGroup
		var next atomic.Int64
		for range 4 {
			wg.Go(func() {
				for i := next.Add(1) - 1; int(i) < len(left); i = next.Add(1) - 1 {
					if said, seen := f.try(t, open, left[i].name); !seen && !strings.HasPrefix(said, "OPEN") {
						t.Errorf("%s does not work without a policy either: %q", left[i].name, said)
					}
				}
			})
		}
		wg.Wait()
	})
}

// A policy that allows by default refuses what its rules name, and what would
// hide names.
func testAllowAllBut(t *testing.T, f *fort) {
	id := f.policed(t, map[string]any{"defaultAction": "allow", "egress": []any{
		map[string]any{"action": "deny", "target": "evil.example"},
		map[string]any{"action": "deny", "target": "*.evil.example"},
		map[string]any{"action": "deny", "target": "203.0.113.12"},
		map[string]any{"action": "deny", "target": "2001:db8:113::12"},
	}})
	for name := range strings.FieldsSeq(`dns_tunnel_label dns_other_udp dns_other_tcp dns_over_tls sni_evil_at_allowed sni_small_records
		host_evil host_absolute_target keepalive_second_host smuggle_both_lengths ip_tcp ip_neighbour_of_allowed
		quic_allowed quic_evil metadata private_range other_sandbox host_gateway host_outside_address rebind_private`) {
		if said, seen := f.try(t, id, name); seen || !strings.HasPrefix(said, "BLOCKED") {
			t.Errorf("%s got through: %v %q", name, seen, said)
		}
	}
	for name := range strings.FieldsSeq("good_http good_tls good_opaque good_line good_udp good_server_first good_wild sni_missing ip_udp") {
		if said, _ := f.try(t, id, name); !strings.HasPrefix(said, "OPEN") {
			t.Errorf("%s does not work: %q", name, said)
		}
	}
}

// A changed policy cuts what it forbids, proxied connections and packets alike,
// and the port is no way back.
func testPolicyChangeCuts(t *testing.T, f *fort) {
	id := f.policed(t, denyBut("allowed.example"))
	type result struct{ out string }
	held, ended := make(chan struct{}), make(chan result, 1)
	go func() {
		w := &lineWaiter{line: "HOLDING", found: held}
		_, err := f.Client.Run(t.Context(), id, client.Command{Argv: []string{"python3", "/attacks.py", "hold", "tokhold"}, Env: f.env}, client.Output{Stdout: w, Stderr: io.Discard})
		if err != nil {
			w.buf.WriteString(err.Error())
		}
		ended <- result{w.buf.String()}
	}()
	select {
	case <-held:
	case r := <-ended:
		t.Fatalf("it did not connect: %q", r.out)
	}
	if r := f.Do(t, http.MethodPut, "/v1/sandboxes/"+id+"/networkpolicy", denyBut("other.example")); r.Status != http.StatusOK {
		t.Fatalf("changing the policy: %d %s", r.Status, r.Body)
	}
	if r := <-ended; !strings.Contains(r.out, "BLOCKED") {
		t.Errorf("the connection goes on: %q", r.out)
	}
	if said, _ := f.try(t, id, "good_http"); strings.HasPrefix(said, "OPEN") {
		t.Error("the name still works")
	}
	if r := f.Do(t, http.MethodPut, "/v1/sandboxes/"+id+"/networkpolicy", denyBut("allowed.example")); r.Status != http.StatusOK {
		t.Fatalf("changing the policy: %d %s", r.Status, r.Body)
	}
	if said, _ := f.try(t, id, "good_http"); !strings.HasPrefix(said, "OPEN") {
		t.Errorf("the name does not work again: %q", said)
	}
}

// testDenialsAreTold looks for the explanations of a name, a connection and a
// packet that were refused.
func testDenialsAreTold(t *testing.T, f *fort) {
	id := f.policed(t, map[string]any{"defaultAction": "deny", "egress": []any{
		map[string]any{"action": "allow", "target": "allowed.example"},
		map[string]any{"action": "deny", "target": "bad.example"},
	}})
	f.Shell(t, id, "python3 -c 'import socket; socket.gethostbyname(\"bad.example\")'")
	f.try(t, id, "host_evil")
	f.try(t, id, "ip_tcp_other_port")
	var text string
	for _, want := range []string{"dns bad.example by python3[", "evil.example", "203.0.113.66:7000"} {
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(text, want); time.Sleep(50 * time.Millisecond) {
			text = string(f.Do(t, http.MethodGet, "/v1/sandboxes/"+id+"/diagnostics/events?scope=runtime", nil).Body)
			if time.Now().After(deadline) {
				t.Fatalf("no event about %s: %s", want, text)
			}
		}
	}
}

// testRestartKeepsPolicy kills the server and looks at the sandbox meanwhile and
// afterwards.
func testRestartKeepsPolicy(t *testing.T, f *fort) {
	id := f.policed(t, denyBut("allowed.example"))
	if said, _ := f.try(t, id, "good_http"); !strings.HasPrefix(said, "OPEN") {
		t.Fatalf("does not work: %q", said)
	}
	// It keeps trying, also while there is no server.
	f.Must(t, id, "nohup sh -c 'while :; do python3 /attacks.py ip_tcp tokrestart; done' >/dev/null 2>&1 &")
	f.Kill()
	if err := f.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.State(t, id, client.StateRunning)
	if f.w.saw(t, "tokrestart", 0) {
		t.Error("the sandbox was open while the server was down")
	}
	if said, _ := f.try(t, id, "good_http"); !strings.HasPrefix(said, "OPEN") {
		t.Errorf("does not work after the restart: %q", said)
	}
}

// lineWaiter closes a channel when a line was written.
type lineWaiter struct {
	buf   strings.Builder
	line  string
	found chan struct{}
}

func (w *lineWaiter) Write(b []byte) (int, error) {
	had := strings.Contains(w.buf.String(), w.line)
	w.buf.Write(b)
	if !had && strings.Contains(w.buf.String(), w.line) {
		close(w.found)
	}
	return len(b), nil
}
