#!/usr/bin/env python3
"""Writes kinds/internal.txt, the names and the order in which some messages of Kubernetes print its own structures.

    internal.py MODULES > ../src/kinds/internal.txt

MODULES  the folder of the Go modules, ~/go/pkg/mod/k8s.io; read are the fields of kubernetes' pkg/apis/GROUP/types.go and
         their JSON names in api's GROUP/v1/types.go, core's first. What the letters mean: kinds/internal.rs.
"""
import re
import sys

G = sys.argv[1].rstrip('/') + '/'
def parse(f):
    src=open(f).read(); structs={}; aliases={}
    cur=None
    for line in src.split('\n'):
        m=re.match(r'type (\w+) struct \{',line)
        if m: cur=m.group(1); structs[cur]=[]; continue
        m=re.match(r'type (\w+) (?:=\s*)?([\w.\[\]*]+)$',line)
        if m: aliases[m.group(1)]=m.group(2)
        if line.startswith('}'): cur=None
        if cur:
            l=re.sub(r'//.*','',line).strip()
            if not l: continue
            m=re.match(r'(\w+)\s+([\w.\[\]*]+)\s*(?:`json:"([^"]*)".*`)?',l)
            if m and m.group(2): structs[cur].append((m.group(1),m.group(2),m.group(3))); continue
            m=re.match(r'(\*?[\w.]+)\s*(?:`.*`)?$',l)
            if m: structs[cur].append((None,m.group(1),None))
    return structs,aliases
internal,ialias,v1={},{},{}
for group in ['core','policy','rbac','networking']:
    structs,aliases=parse(G+f'kubernetes@v1.37.0/pkg/apis/{group}/types.go')
    # Of one name in two groups core's stands: nothing of another group that is printed has such a part.
    internal={**structs,**internal}; ialias={**aliases,**ialias}
    v1={**parse(G+f'api@v0.37.0/{group}/v1/types.go')[0],**v1}
vjson={}
def flat(structs,name):
    out=[]
    for n,t,j in structs.get(name,[]):
        if n is None:
            out+=flat(structs,t.split('.')[-1])
        elif j and ',inline' in j and not j.split(',')[0]:
            out+=flat(structs,t.split('.')[-1])
        else: out.append((n,t,j))
    return out
prim={'string':'s','bool':'b','int32':'i','int64':'i','int':'i','types.UID':'s','float64':'i'}
def kind(t):
    # returns code
    if t in prim: return prim[t]
    if t.startswith('*'):
        k=kind(t[1:])
        return 'L' if k=='L' else 'p' if k in 'sbi' else ('p'+k if k.startswith('.') else 'p')
    if t.startswith('[]'):
        k=kind(t[2:]); 
        return '*'+k[1:] if k.startswith('.') else 'p'
    if t.startswith('map[') : return 'p'
    if t in ialias: return kind(ialias[t])
    if t in internal: queue.append(t); return '.'+t
    if t in ('metav1.LabelSelector',): return 'L'
    if t=='resource.Quantity': return 'q'
    if t=='intstr.IntOrString': return 'I'
    if t=='metav1.Time': return 'p'
    if t=='metav1.ObjectMeta': return 'M'
    print('??',t,file=sys.stderr); return 'p'
queue=['PodSpec','Taint','ServicePort','NodeAddress','PodIP','HostIP','PersistentVolumeSource','PodDisruptionBudgetSpec','RoleRef','ServiceCIDRSpec','VolumeNodeAffinity']
done=[]
lines=[]
while queue:
    n=queue.pop(0)
    if n in done: continue
    done.append(n)
    vf={a:(b,c) for a,b,c in flat(v1,n)}
    fs=[]
    for a,t,_ in flat(internal,n):
        j=None
        if a in vf: j=vf[a][1].split(',')[0]
        else:
            print('no json',n,a,file=sys.stderr); j=a[0].lower()+a[1:]
        k=kind(t)
        fs.append(f'{a}={j}' + (':'+k if k!='p' else ''))
    lines.append(n+' '+' '.join(fs))
print('\n'.join(lines))
